"""BitFit: biases only."""
