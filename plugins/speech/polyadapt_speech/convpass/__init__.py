"""Convpass: bottlenecks with a convolution along the sequence."""
