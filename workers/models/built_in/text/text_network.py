"""The text model's encoder: named tensors in and out. Imports torch, for the device process and for training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn


class TextEncoder(nn.Module):
    """A BERT-like encoder that returns the features named in `keep`; `forward` lists them."""

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
        """Return the features of a batch of texts, `width` being the encoder's.

        `pooled`: the mean of the last layer, `(rows, width)`. `layers`: the means of all layers from the embeddings up,
        and the last layer's maximum and first token, `(rows, layers + 2, width)`. `tokens.N`: layer N itself, `(rows,
        tokens, width)`. A frozen encoder keeps much that heads need (negation, tone) in its middle layers.
        """
        layers = self.backbone(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        weights = mask.unsqueeze(-1).to(layers[-1].dtype)
        means = [(layer * weights).sum(1) / weights.sum(1) for layer in layers]
        highest = layers[-1].masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
        pooled = {"pooled": means[-1], "layers": torch.stack([*means, highest, layers[-1][:, 0]], 1)}
        features = pooled | {f"tokens.{number}": layer for number, layer in enumerate(layers)}
        return {name: tensor for name, tensor in features.items() if self._keep is None or name in self._keep}
