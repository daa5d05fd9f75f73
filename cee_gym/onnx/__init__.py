"""Multi-exit models in ONNX Runtime."""
