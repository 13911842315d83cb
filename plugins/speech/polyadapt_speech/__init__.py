"""Speech plugin of Polyadapt: spectrogram transformers, speech recognition in many languages, speaker adaptation."""

__version__ = "0.1.0"
