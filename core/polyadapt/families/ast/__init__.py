"""Audio spectrogram transformers of transformers."""
