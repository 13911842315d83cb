"""Families: one folder a kind of backbone. `card.py` is data, `model.py` knows the library."""
