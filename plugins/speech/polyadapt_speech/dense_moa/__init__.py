"""Dense mixtures of adapters: every token weighs all of them."""
