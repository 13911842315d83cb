"""CLIP of transformers: a text tower and an image tower."""
