"""T5: encoder and decoder with relative positions."""
