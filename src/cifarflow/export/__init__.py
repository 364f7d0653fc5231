"""From a trained network to one ONNX file that is checked against it."""
