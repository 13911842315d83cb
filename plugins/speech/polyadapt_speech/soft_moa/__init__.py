"""Soft mixtures of adapters: every adapter sees weighted means of the tokens."""
