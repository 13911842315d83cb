"""A small residual policy of our own: observation to action, normalisation inside."""
