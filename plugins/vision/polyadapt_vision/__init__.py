"""Vision plugin of Polyadapt: few-shot and class-incremental learning, prompts, image generation."""

__version__ = "0.1.0"
