"""ONNX files as a source of models of their own, as optimum and transformers.js write them."""
