"""Methods of core, one folder each: `card.py` is data, `method.py` builds the training form."""
