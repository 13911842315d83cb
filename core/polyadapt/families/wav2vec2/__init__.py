"""wav2vec 2.0 of transformers."""
