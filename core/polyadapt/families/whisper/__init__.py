"""Whisper of transformers: both towers, or the encoder alone."""
