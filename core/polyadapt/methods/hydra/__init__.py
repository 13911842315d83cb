"""Hydra: parallel and sequential low-rank branches."""
