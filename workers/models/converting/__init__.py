"""Converters of weights in other formats to safetensors, run when a model is pulled."""
