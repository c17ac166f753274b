"""Write networks as ONNX files and check them numerically."""
