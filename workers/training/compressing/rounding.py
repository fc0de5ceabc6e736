"""Quantisation-aware fine-tuning by torchao: matrix products round as in int8, and weights learn to bear it."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from producers.wire.errors import ConfigurationError
from workers.training.compressing.task_networks import TaskNetworks


def begin(networks: TaskNetworks) -> None:
    """Let the backbone's linear layers round: weights by channel, activations by token.

    Raises ConfigurationError without torchao.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ConfigurationError("steps: qat needs torchao; pip install 'argosy[compress]'")
    _quantize(networks, step="prepare")


def end(networks: TaskNetworks) -> None:
    """Turn the layers back into plain ones, with the weights that they learnt."""
    _quantize(networks, step="convert")


def _quantize(networks: TaskNetworks, *, step: str) -> None:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns that its CUDA kernels are not for this machine
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    rounded: Any = {}
    if step == "prepare":
        rounded = {
            "activation_config": IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
            "weight_config": IntxFakeQuantizeConfig(torch.int8, "per_channel"),
        }
    quantize_(networks.backbone, QATConfig(**rounded, step=step))
