"""Master-ASR: one recogniser for many languages from shared specialists."""
