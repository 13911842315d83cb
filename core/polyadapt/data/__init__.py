"""Data sets: readers by URI scheme, and splits that keep their promises."""
