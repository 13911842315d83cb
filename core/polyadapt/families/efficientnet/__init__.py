"""Convolutional nets that timm builds from EfficientNet blocks."""
