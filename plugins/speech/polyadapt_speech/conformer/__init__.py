"""Conformer adapters: a gated convolution along the sequence."""
