"""Voices for sherpa-onnx: an export target beside bundles."""
