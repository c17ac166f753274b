"""Count the operations of an ONNX file."""
