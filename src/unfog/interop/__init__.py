"""Import and export of models: diffusers folders and ONNX."""
