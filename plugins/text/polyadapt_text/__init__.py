"""Text plugin of Polyadapt: language models and encoders: tuning, decoding-time adaptation, prompt programs."""

__version__ = "0.1.0"
