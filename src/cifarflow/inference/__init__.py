"""Use of an exported model with onnxruntime, numpy and pillow alone: no torch, no mlflow."""
