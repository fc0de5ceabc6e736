"""The network of a joint training: one encoder, a head for each task, and the loss over rows of any tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from producers.wire.errors import ConfigurationError
from workers.models.built_in.multitask.head_modules import TokenAttention
from workers.models.built_in.text.text_network import TextEncoder

_SMOOTHING = 0.05


class JointNetwork(nn.Module):
    """An encoder that all tasks share, with a `TokenAttention` head for each.

    Without `weights`, tasks are weighted by their uncertainty (Kendall, Gal and Cipolla, 2018, section 3.2): a row of a
    task costs ``exp(-s) * loss + s / 2``, where the task's s, its log variance, is learnt with the rest.
    """

    def __init__(
        self, encoder: TextEncoder, heads: Mapping[str, TokenAttention], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.learns_weights = weights is None
        log_variances = torch.tensor([0.0 if weights is None else weights[name] for name in heads])
        self.weights = nn.Parameter(log_variances) if weights is None else nn.Buffer(log_variances)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, tasks: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of all rows' losses, and for each task its rows, its plain loss, and the number of correct
        rows.
        """
        features = self.encoder(ids, mask) | {"mask": mask}
        losses, tallies = [], []
        for number, head in enumerate(self.heads.values()):
            # a head without rows runs all the same: DDP waits for the gradient of every parameter, even for zeros
            rows = (tasks == number).nonzero().squeeze(1)
            scores = head({part: features[part].index_select(0, rows) for part in TokenAttention.reads}).float()
            loss = functional.cross_entropy(scores, labels[rows], reduction="sum", label_smoothing=_SMOOTHING)
            losses.append(self._weighed(number, loss, len(rows)))
            right = (scores.argmax(1) == labels[rows]).sum()
            tallies.append(torch.stack([torch.full_like(loss, len(rows)), loss, right.to(loss.dtype)]).detach())
        return torch.stack(losses).sum(), torch.stack(tallies)

    def _weighed(self, number: int, loss: torch.Tensor, rows: int) -> torch.Tensor:
        weight = self.weights[number]
        return (-weight).exp() * loss + rows * weight / 2 if self.learns_weights else weight * loss


def build(folder: Path, labels: Mapping[str, int], weights: Mapping[str, float] | None, seed: int) -> JointNetwork:
    """Return the network on the encoder in `folder`, with new heads. Raises ConfigurationError if the encoder has too
    few layers.
    """
    encoder = TextEncoder(folder, {name for name in TokenAttention.reads if name != "mask"}).float()
    config = encoder.backbone.config
    if config.num_hidden_layers < max(TokenAttention.layers):
        raise ConfigurationError(
            f"{folder}: has {config.num_hidden_layers} layers; the heads read up to number {max(TokenAttention.layers)}"
        )
    for name, parameter in encoder.backbone.named_parameters():
        # the pooler, and layers above the heads', are not used
        parameter.requires_grad_(not (name.startswith("pooler.") or _above(name)))
    torch.manual_seed(seed)
    inputs = config.hidden_size * len(TokenAttention.layers)
    return JointNetwork(encoder, {name: TokenAttention(inputs, count) for name, count in labels.items()}, weights)


def _above(name: str) -> bool:
    _, found, rest = name.partition("encoder.layer.")
    return bool(found) and int(rest.partition(".")[0]) >= max(TokenAttention.layers)
