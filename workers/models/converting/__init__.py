"""Weights of other formats converted to safetensors when a model is pulled."""
