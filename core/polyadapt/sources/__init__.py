"""Sources: where models come from. `catalog.py` is data, `load.py` turns a reference into a model."""
