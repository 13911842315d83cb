"""Tuning of norms: their weights and biases only."""
