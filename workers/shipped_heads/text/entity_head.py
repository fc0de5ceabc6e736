"""Train the head `entities` of the text model: ``python -m workers.shipped_heads.text.entity_head [--out FOLDER]
[--judge]``.

It learns the entities that spaCy's small model finds in news (`workers.shipped_heads.text.teacher`), over the frozen
encoder's tokens. ``--judge`` scores the present head on the held-out articles and on the sentences of
`gold_entities.txt`, by the serving code.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional

from workers.models.built_in.multitask import head_file
from workers.models.built_in.multitask.head_modules import TokenLabels
from workers.models.built_in.text.text_model import BUILTIN_HEADS, TextModel
from workers.models.built_in.text.token_labelling import shapes
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.sources import model_source
from workers.shipped_heads.text import teacher
from workers.shipped_heads.text.teacher import TYPES, Marked
from workers.training import head_features
from workers.training.data import SEED
from workers.training.kinds.labelled_kind import IGNORED
from workers.training.training_batches import by_size

LABELS = ("O", *(f"{place}-{type_}" for type_ in TYPES for place in "BI"))

_TEXTS = 2_400
_EPOCHS = 6
_BATCH_TOKENS = 2_000
_LEARNING_RATE = 1.5e-3


class EntityRows:
    """Texts as input of the head: tokens' features `(tokens, layers * width)`, their spelling, their labels'
    numbers.
    """

    def __init__(self, model: TextModel, texts: Sequence[Marked], what: str) -> None:
        tokenizing = Tokenizing(Checkpoint(model.spec.folder, "models.text"))
        encodings = [tokenizing.encode(one.text) for one in texts]
        short = [n for n, encoding in enumerate(encodings) if len(encoding.ids) <= model.max_tokens]
        self.tokens = head_features.tokens(model, [texts[n].text for n in short], what)
        self.shapes = [shapes(texts[n].text, encodings[n]) for n in short]
        self.wanted = [labels_of(texts[n], encodings[n].offsets) for n in short]

    def batches(self, random: Random | None = None) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Yield padded batches of texts of similar length, in random order for training."""
        sizes = [len(row) * (random.uniform(0.9, 1.1) if random else 1) for row in self.tokens]
        groups = list(by_size(sizes, _BATCH_TOKENS))
        if random:
            random.shuffle(groups)
        for group in groups:
            yield self._padded(group)

    def _padded(self, group: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        size = (len(group), max(len(self.tokens[n]) for n in group))
        tokens = torch.zeros(*size, self.tokens[0].shape[1])
        mask, written = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.uint8)
        wanted = torch.full(size, IGNORED)
        for row, place in enumerate(group):
            length = len(self.tokens[place])
            tokens[row, :length] = torch.from_numpy(self.tokens[place].astype(np.float32))
            mask[row, :length], written[row, :length] = True, torch.from_numpy(self.shapes[place])
            wanted[row, :length] = torch.from_numpy(self.wanted[place])
        parts = zip(TokenLabels.reads[2:], tokens.chunk(len(TokenLabels.layers), -1), strict=True)
        return {"mask": mask, "shapes": written} | dict(parts), wanted


def labels_of(marked: Marked, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the number in `LABELS` of each token's label; special tokens are not judged."""
    found = np.full(len(offsets), IGNORED, dtype=np.int64)
    for place, (start, end) in enumerate(offsets):
        if end > start:
            own = next((one for one in marked.entities if start < one.end and end > one.start), None)
            begins = own is not None and not any(own.start < before[1] <= start for before in offsets[:place][-1:])
            found[place] = LABELS.index(f"{'B' if begins else 'I'}-{own.type}") if own else 0
    return found


def train(known: EntityRows, unseen: EntityRows, console: Console) -> TokenLabels:
    """Return a head trained on `known`, at its lowest loss on `unseen`."""
    torch.manual_seed(SEED)
    random = Random(SEED)  # noqa: S311 (a repeatable order, no secret)
    module = TokenLabels(known.tokens[0].shape[1], len(LABELS))
    optimiser = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, weight_decay=0.02)
    steps = _EPOCHS * sum(1 for _ in known.batches())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps + steps // 20)
    best, kept = float("inf"), module.state_dict()
    for epoch in range(_EPOCHS):
        module.train()
        for read, wanted in known.batches(random):
            loss = loss_of(module, read, wanted)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        found = judge_loss(module, unseen)
        console.print(f"epoch {epoch + 1} of {_EPOCHS}: validation loss {found:.4f}")
        if found < best:
            best, kept = found, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return module.eval()


def loss_of(module: TokenLabels, read: dict[str, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(module(read).flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def judge_loss(module: TokenLabels, rows: EntityRows) -> float:
    module.eval()
    total = count = 0.0
    with torch.inference_mode():
        for read, wanted in rows.batches():
            tokens = int((wanted != IGNORED).sum())
            total, count = total + float(loss_of(module, read, wanted)) * tokens, count + tokens
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUILTIN_HEADS, help="folder for the head (default: %(default)s)")
    parser.add_argument("--judge", action="store_true", help="judge the head that is there; train none")
    asked = parser.parse_args()
    console, cache = Console(), model_source.cache_folder()
    parts = teacher.parts(cache, _TEXTS)
    if asked.judge:
        from workers.shipped_heads.text import entity_scores

        entity_scores.show(teacher.mark(parts["test"], cache), cache, console, asked.out)
        return
    model = head_features.text_model(cache)
    rows = {name: EntityRows(model, teacher.mark(parts[name], cache), name) for name in ("train", "validation")}
    module = train(rows["train"], rows["validation"], console)
    path = asked.out / "entities" / head_file.FILE
    head_file.save(module, path, kind="token-labels", labels=LABELS, seed=SEED)
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
