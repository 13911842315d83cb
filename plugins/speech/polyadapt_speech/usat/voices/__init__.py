"""Where voices come from: Piper's ONNX files and transformers' VITS models, read into one network by the names of their weights."""
