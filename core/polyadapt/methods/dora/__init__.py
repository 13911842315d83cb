"""DoRA: weight-decomposed low-rank adaptation."""
