"""Evaluation: predictions, metrics that are sums over examples, and intervals by resampling them."""
