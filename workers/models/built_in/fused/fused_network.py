"""The head over two backbones, which compares a text with an image. Imports torch."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

#: The number of an image's places, as in the output of `VisionEncoder`.
PLACES = 49


class FusedHead(nn.Module):
    """Attention from the text to the image.

    A few queries are weighted means of the text's tokens, and attend to the image's places. A gate mixes the result
    with the queries, and two layers give the scores.
    """

    def __init__(
        self,
        text: int,
        image: int,
        labels: int,
        *,
        width: int = 96,
        queries: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, width))
        self.image = nn.Sequential(nn.LayerNorm(image), nn.Linear(image, width), nn.GELU())
        self.place = nn.Parameter(torch.zeros(PLACES, width))
        self.queries = nn.Linear(width, queries)
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate = nn.Linear(2 * width, width)
        self.judge = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(3 * queries * width, 2 * width), nn.GELU(), nn.Dropout(dropout)
        )
        self.out = nn.Linear(2 * width, labels)

    @classmethod
    def of_shape(cls, tensors: dict[str, torch.Tensor]) -> Self:
        width, text = tensors["text.1.weight"].shape
        return cls(
            text,
            tensors["image.1.weight"].shape[1],
            tensors["out.weight"].shape[0],
            width=width,
            queries=tensors["queries.weight"].shape[0],
        )

    def seen(self, places: torch.Tensor) -> torch.Tensor:
        """Return the head's features of images' places `(images, 49, width)`, computed once for each image."""
        shown: torch.Tensor = self.image(places) + self.place
        return shown

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Map texts' tokens `(rows, tokens, width)` and their images' `seen` places to scores `(rows, labels)`."""
        words = self.text(tokens)
        weights = self.queries(words).masked_fill(~mask.unsqueeze(-1), float("-inf")).softmax(1)
        asked = weights.transpose(1, 2) @ words
        found, _ = self.look(asked, shown, shown, need_weights=False)
        gate = torch.sigmoid(self.gate(torch.cat([asked, found], -1)))
        mixed = gate * found + (1 - gate) * asked
        scores: torch.Tensor = self.out(self.judge(torch.cat([asked, mixed, asked * found], -1).flatten(1)))
        return scores
