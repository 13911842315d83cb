"""Readers: one file each, named by a card that imports nothing heavy."""
