"""Explanations of text models: the line leads through the word embeddings, from a text whose tokens are all masked.

The network is called with token ids as usual. A hook replaces the embeddings that it looks up by points of the line.
This works for any network that looks them up exactly once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.kinds.explanation import Explanation, WordPart
from workers.models.built_in.text.text_model import TextModel
from workers.models.explaining.subject import Attribution, IntegrationPath, M, Points, Subject
from workers.models.huggingface.text import label_heads
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text_head import TextHead
from workers.models.interface.model import SCORE_DIGITS, Arrays, Prepared

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

#: The smallest ratio of the lengths of two texts that share a pass.
_LEAST_REAL_SHARE = 0.75


class TextSubject(Subject[M]):
    """The base of both kinds of text models."""

    @abstractmethod
    def _encoding(self, task: str, content: str, tokens: int) -> Encoding:
        """Return the first `tokens` tokens of the text, with their offsets."""

    @abstractmethod
    def _ids(self, task: str, row: Arrays) -> Arrays:
        """Return a row's sequence for a task: `ids` and the network's other inputs, each `(tokens,)`."""

    @property
    @abstractmethod
    def _embeddings(self) -> Any:
        """The network's table of word embeddings."""

    @property
    @abstractmethod
    def _blank(self) -> int | None:
        """The token of the baseline; None for embeddings of zero."""

    @abstractmethod
    def _logits(self, batch: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the network over `ids`, `mask` …, all `(rows, tokens)`, and each task's head over its rows."""

    # --- in the parent process ---

    def about(self, task: str, content: Any, params: Any, prepared: Prepared) -> tuple[Arrays, Any]:
        tokens = len(self._ids(task, prepared.arrays)["ids"])
        encoding = self._encoding(task, content, tokens)
        special = np.asarray(encoding.special_tokens_mask, dtype=np.uint8)
        return {"special": special}, (content, _words(encoding))

    def told(self, measured: Attribution, about: Any, *, steps: int) -> Explanation:
        text, words = about
        parts = []
        for first, last, tokens in words:
            start, end = _trimmed(text, first, last)
            contribution = float(measured.contributions[list(tokens)].sum())
            parts.append(WordPart(text[start:end], start, end, round(contribution, SCORE_DIGITS)))
        return Explanation(
            method="integrated-gradients",
            baseline="every token masked" if self._blank is not None else "every embedding zero",
            value=round(measured.value, SCORE_DIGITS),
            base=round(measured.base, SCORE_DIGITS),
            steps=steps,
            delta=round(float(measured.contributions.sum()) - (measured.value - measured.base), SCORE_DIGITS),
            words=tuple(parts),
        )

    # --- in the device process ---

    def line(self, task: str, row: Arrays, about: Arrays) -> IntegrationPath:
        import torch

        table = self._embeddings
        device = table.weight.device
        fixed = {name: torch.from_numpy(array.copy()).long().to(device) for name, array in self._ids(task, row).items()}
        special = torch.from_numpy(about["special"].copy()).bool().to(device)
        with torch.no_grad():
            x = table(fixed["ids"])
            blank = torch.zeros_like(x) if self._blank is None else table(torch.full_like(fixed["ids"], self._blank))
        return IntegrationPath(task, x, torch.where(special.unsqueeze(-1), x, blank), fixed)

    def cost(self, line: IntegrationPath) -> int:
        return len(line.x)

    def along(self, line: IntegrationPath, other: IntegrationPath) -> bool:
        return min(len(line.x), len(other.x)) >= _LEAST_REAL_SHARE * max(len(line.x), len(other.x))

    def log_odds(self, points: Sequence[Points]) -> torch.Tensor:
        import torch

        longest = max(len(own.line.x) for own in points)
        batch = _padded(points, longest)
        embedded = torch.cat([_extended(own.values, longest) for own in points])
        with _in_place_of(self._embeddings, batch["ids"], embedded):
            return self.odds(points, lambda rows: self._logits(batch, rows))

    def condensed(self, contributions: torch.Tensor) -> torch.Tensor:
        return contributions.sum(-1)


class OwnTexts(TextSubject[TextModel]):
    """The built-in text model with its heads."""

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        tasks = self.model.spec.tasks.values()
        return {task.name: self.model.labels(task) for task in tasks if task.kind.name == "text-classification"}

    def _encoding(self, task: str, content: str, tokens: int) -> Encoding:
        return self.model.encoding(content)

    def _ids(self, task: str, row: Arrays) -> Arrays:
        return {"ids": row["ids"]}

    @property
    def _embeddings(self) -> Any:
        return self._module.backbone.get_input_embeddings()

    @property
    def _blank(self) -> int | None:
        return self.model.mask_id

    def _logits(self, batch: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = self._module(batch["ids"], batch["mask"].bool()) | {"mask": batch["mask"].bool()}
        return {task: self.model.logits(task, features, own) for task, own in rows.items()}

    @property
    def _module(self) -> Any:
        return self.model.module


class FolderTexts(TextSubject[EncoderModel]):
    """Any Hugging Face text classifier."""

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        heads = self.model.heads.items()
        return {task: head.checkpoint.labels for task, head in heads if isinstance(head, label_heads.Classification)}

    def _encoding(self, task: str, content: str, tokens: int) -> Encoding:
        head: TextHead = self.model.heads[task]
        encoding = head.encode(content)
        return encoding if len(encoding.ids) == tokens else head.tokenizing.cut(content, None, tokens)

    def _ids(self, task: str, row: Arrays) -> Arrays:
        [place] = row[f"of/{task}"]
        end = int(row["lengths"][: place + 1].sum())
        start = end - int(row["lengths"][place])
        return {"ids": row["ids"][start:end], "types": row["types"][start:end]}

    @property
    def _embeddings(self) -> Any:
        return self.model.networks.embeddings

    @property
    def _blank(self) -> int | None:
        tokenizing = next(iter(self.model.heads.values())).tokenizing
        return tokenizing.token_id("mask_token")

    def _logits(self, batch: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if getattr(self.model.networks.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = batch["types"]
        networks = self.model.networks
        adapters = [0] * len(batch["ids"])
        for task, own in rows.items():
            for row in own.tolist():
                adapters[row] = networks.adapter_number(task)
        return {
            task: self.model.heads[task].compute(
                output, {name: tensor.index_select(0, rows[task]) for name, tensor in inputs.items()}
            )
            for task, output in networks.run(inputs, rows, adapters).items()
        }

    def along(self, line: IntegrationPath, other: IntegrationPath) -> bool:
        own, others = (self.model.networks.adapter_number(one.task) for one in (line, other))
        return super().along(line, other) and (own == others or self.model.shares_adapters)

    def rivals(self, task: str) -> bool:
        head = self.model.heads[task]
        assert isinstance(head, label_heads.Classification), "only classification is explained"
        return head.function == "softmax"


def _words(encoding: Encoding) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return the words of a text: the first and last character of each, and its tokens."""
    tokens: dict[int, list[int]] = {}
    for place, word in enumerate(encoding.word_ids):
        if word is not None and not encoding.special_tokens_mask[place]:
            tokens.setdefault(word, []).append(place)
    spans = [[encoding.offsets[place] for place in own] for own in tokens.values()]
    return [
        (min(start for start, _ in own), max(end for _, end in own), tuple(places))
        for own, places in zip(spans, tokens.values(), strict=True)
    ]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without the space that some tokenizers include in a word."""
    word = text[start:end]
    return start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip()) if word.strip() else end


def _padded(points: Sequence[Points], longest: int) -> dict[str, torch.Tensor]:
    """Return the fixed inputs of each point's line, padded, and a mask."""
    import torch

    found: dict[str, list[torch.Tensor]] = {"mask": []}
    for own in points:
        count = len(own.values)
        fixed = {**own.line.fixed, "mask": torch.ones_like(own.line.fixed["ids"])}
        for name, row in fixed.items():
            found.setdefault(name, []).append(torch.nn.functional.pad(row, (0, longest - len(row))).expand(count, -1))
    return {name: torch.cat(rows) for name, rows in found.items()}


def _extended(values: torch.Tensor, longest: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(values, (0, 0, 0, longest - values.shape[1]))


@contextmanager
def _in_place_of(table: Any, ids: torch.Tensor, embedded: torch.Tensor) -> Iterator[None]:
    """Make a table of embeddings return `embedded` for `ids`. Raises NotImplementedError unless it is used once."""
    import torch

    asked_for: list[bool] = []

    def answer(_: Any, asked: tuple[torch.Tensor, ...], __: torch.Tensor) -> torch.Tensor:
        asked_for.append(asked[0].shape == ids.shape and torch.equal(asked[0], ids))
        return embedded

    hook = table.register_forward_hook(answer)
    try:
        yield
    finally:
        hook.remove()
    if asked_for != [True]:
        raise NotImplementedError("the network cannot be explained: it does not look up its tokens exactly once")
