"""Prompt tuning, shallow and deep."""
