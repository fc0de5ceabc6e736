"""Training of an attention head: a few epochs over the frozen encoder's tokens; the best by validation is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional

from workers.models.built_in.multitask.head_modules import TokenAttention

_EPOCHS = 8
_BATCH_ROWS = 64
_LEARNING_RATE = 1e-3

#: A text's tokens, `(tokens, layers * width)`, float16.
Tokens = NDArray[np.float16]
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


def train(
    known: tuple[Sequence[Tokens], NDArray[np.int64]],
    unseen: tuple[Sequence[Tokens], NDArray[np.int64]],
    *,
    labels: int,
    seed: int,
    console: Console,
) -> TokenAttention:
    """Return a head trained on `known` (texts, numbers of labels), at its best epoch on `unseen`."""
    torch.manual_seed(seed)
    shuffle = np.random.default_rng(seed)
    module = TokenAttention(known[0][0].shape[1], labels)
    optimiser = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    steps = _EPOCHS * -(-len(known[0]) // _BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    best, kept = -1.0, module.state_dict()
    for epoch in range(_EPOCHS):
        module.train()
        for features, wanted in _batches(*known, shuffle):
            loss = functional.cross_entropy(module(features), wanted, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        score = accuracy(module, *unseen)
        console.print(f"epoch {epoch + 1} of {_EPOCHS}: validation accuracy {score:.4f}")
        if score > best:
            best, kept = score, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return module.eval()


def accuracy(module: TokenAttention, texts: Sequence[Tokens], labels: NDArray[np.int64]) -> float:
    module.eval()
    with torch.inference_mode():
        right = sum(int((module(features).argmax(1) == wanted).sum()) for features, wanted in _batches(texts, labels))
    return right / len(labels)


def _batches(
    texts: Sequence[Tokens], labels: NDArray[np.int64], shuffle: np.random.Generator | None = None
) -> Iterator[Batch]:
    """Yield padded batches of texts of similar length; for shuffling, lengths are blurred and batches mixed."""
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    blurred = lengths + (shuffle.normal(0, 3, len(texts)) if shuffle else 0)
    order = np.argsort(blurred, kind="stable")
    batches = [order[start : start + _BATCH_ROWS] for start in range(0, len(order), _BATCH_ROWS)]
    if shuffle:
        shuffle.shuffle(batches)
    for places in batches:
        yield _padded([texts[place] for place in places]), torch.from_numpy(labels[places])


def _padded(texts: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    tokens = torch.zeros(len(texts), longest, texts[0].shape[1])
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.from_numpy(text.astype(np.float32))
        mask[row, : len(text)] = True
    parts = tokens.chunk(len(TokenAttention.layers), -1)
    return {"mask": mask} | {
        f"tokens.{number}": part for number, part in zip(TokenAttention.layers, parts, strict=True)
    }
