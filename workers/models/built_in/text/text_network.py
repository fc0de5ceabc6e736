"""The text model's encoder as a network of named tensors. Imports torch: for the device process and for training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn


class TextEncoder(nn.Module):
    """A BERT-like encoder that gives its heads what they read; see `forward`. Only what `keep` names is returned."""

    def __init__(self, folder: Path, keep: Collection[str] | None = None) -> None:
        super().__init__()
        self._keep = keep
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker's log is no terminal
        self.backbone: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `pooled`, the mean of the last layer `(rows, width)`; `layers` `(rows, layers + 2, width)`, the mean of
        every layer from the embeddings up, and of the last its maximum and first token; `tokens.N` `(rows, tokens, width)`,
        layer N itself. A frozen encoder keeps much of what heads need (negation, tone) in its middle layers.
        """
        layers = self.backbone(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        weights = mask.unsqueeze(-1).to(layers[-1].dtype)
        means = [(layer * weights).sum(1) / weights.sum(1) for layer in layers]
        highest = layers[-1].masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
        pooled = {"pooled": means[-1], "layers": torch.stack([*means, highest, layers[-1][:, 0]], 1)}
        features = pooled | {f"tokens.{number}": layer for number, layer in enumerate(layers)}
        return {name: tensor for name, tensor in features.items() if self._keep is None or name in self._keep}
