"""Backends of networks: torch, ONNX Runtime, OpenVINO, and CUDA graphs."""
