"""An encoder's layers shared out among processes, for models or batches larger than one device: tensor parallelism.

Each process has some attention heads and some inner features of each layer, with their columns and rows of the matrices
(Shoeybi et al., 2019, section 3); two sums over all processes per layer, forward and backward, join the parts. Every
process has all other parameters whole, and computes the same with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from producers.wire.errors import ConfigurationError
from workers.models.built_in.text.text_network import TextEncoder

#: The matrices of a BERT layer, by the axis of their cut.
_COLUMNS = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
_ROWS = ("attention.output.dense", "output.dense")


def split(encoder: TextEncoder, device: str) -> None:
    """Cut the layers of an encoder, in place, among all processes of the group, each of which holds the whole encoder
    before.

    Raises ConfigurationError for an encoder that is not built like BERT, or cannot be cut evenly.
    """
    count, config = distributed.get_world_size(), encoder.backbone.config
    if config.model_type != "bert":
        raise ConfigurationError(
            f"split: layers of {config.model_type!r} cannot be shared out, only BERT's; split rows"
        )
    if config.num_attention_heads % count or config.intermediate_size % count:
        raise ConfigurationError(
            f"split: {config.num_attention_heads} attention heads and {config.intermediate_size} inner features "
            f"cannot be divided among {count} processes"
        )
    mesh = init_device_mesh(torch.device(device).type, (count,))
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in _COLUMNS}
    plan |= {name: RowwiseParallel() for name in _ROWS}
    for layer in encoder.backbone.encoder.layer:
        frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
        parallelize_module(layer, mesh, plan)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in frozen)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that is shared out; all processes must call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor."""
    if not isinstance(of, DTensor):
        return tensor.to(of.device)
    # without a source each process cuts its own copy, and nothing is sent
    return distribute_tensor(tensor.to(of.device), of.device_mesh, of.placements, src_data_rank=None)


def clip(parameters: Iterable[torch.nn.Parameter], most_norm: float) -> None:
    """Scale gradients down to at most this norm, computed over whole and shared-out ones alike."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([whole(torch.linalg.vector_norm(gradient)) for gradient in gradients])
    scale = most_norm / (float(torch.linalg.vector_norm(norms)) + 1e-6)
    if scale < 1:
        for gradient in gradients:
            gradient.mul_(scale)
