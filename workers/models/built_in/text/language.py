"""Detect the language of a text: a linear model over hashed n-grams of one to four letters.

After Joulin et al. (2016), "Bag of tricks for efficient text classification". The model is so small that no batch of it
is worth waiting for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.built_in.multitask import head_file
from workers.models.interface.model import SCORE_DIGITS, Array, Arrays, Model, Prepared, digest
from workers.models.interface.options import Options

if TYPE_CHECKING:
    import torch

#: Rows of the table of n-grams; several n-grams share a row.
BUCKETS = 24_576

#: The number of characters that are read; more of them change no answer.
MOST_CHARACTERS = 2_000

#: The answer for a text without letters: "undetermined" in ISO 639-2.
UNDETERMINED = "und"

FORMAT = "languages"

_LONGEST_NGRAM = 4
_PRIME, _GOLDEN = np.uint32(16_777_619), np.uint32(2_654_435_769)
_NO_LETTERS = re.compile(r"(?:https?://|www\.)\S+|[\W\d_]+")


class LanguageModel(Model):
    """A model without options. Its folder holds `head.safetensors`, from `workers.shipped_heads.text.languages`."""

    options_class = Options
    default_cost = 64

    # --- in the parent process ---

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Turn a text into the table rows of its n-grams; a text without letters has none."""
        if isinstance(content, bytes):
            raise InvalidInput("input", "must be text, not bytes", "decode it before it is submitted")
        arrays = {"ngrams": ngrams(content)}
        return Prepared(arrays, 1, digest(arrays))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        """Concatenate the rows' n-grams: `ngrams`, and the offset of each row in it, `starts`."""
        counts = np.array([len(row.arrays["ngrams"]) for row in rows], dtype=np.int64)
        return {"ngrams": np.concatenate([row.arrays["ngrams"] for row in rows]), "starts": np.cumsum(counts) - counts}

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the best languages. `output` is all zeros for a text without letters."""
        if not output.any():
            return [{"label": UNDETERMINED, "score": 1.0}]
        best = np.argsort(-output, kind="stable")[: params.top_k]  # type: ignore[attr-defined]
        return [{"label": self.labels[n], "score": round(float(output[n]), SCORE_DIGITS)} for n in best]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The languages as ISO 639-1 codes, in the order of the scores."""
        return head_file.read_labels(self.spec.folder / head_file.FILE)

    @cached_property
    def revision(self) -> str:
        file = self.spec.folder / head_file.FILE
        if (kind := head_file.read_metadata(file)["kind"]) != FORMAT:
            raise ConfigurationError(f"models.{self.spec.name}: {file} is of kind {kind!r}, not {FORMAT!r}")
        return self.spec.revision

    # --- in the device process ---

    def load(self, device: str) -> None:
        from safetensors.torch import load_file

        tensors = load_file(self.spec.folder / head_file.FILE, device=device)
        self._table, self._out, self._bias = (tensors[name].float() for name in ("table", "out", "bias"))

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        device = self._table.device
        ngrams_, starts = (torch.from_numpy(arrays[name]).to(device) for name in ("ngrams", "starts"))
        with torch.inference_mode():
            found = scores(ngrams_, starts, self._table, self._out, self._bias)
        probabilities: Array = found.softmax(-1).cpu().numpy()
        counts = np.diff(arrays["starts"], append=len(arrays["ngrams"]))
        probabilities[counts == 0] = 0
        return {task: probabilities[rows] for task, rows in wanted.items()}


def scores(
    ngrams_: torch.Tensor, starts: torch.Tensor, table: torch.Tensor, out: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return the languages' scores before the softmax, `(rows, languages)`."""
    import torch

    bags = torch.nn.functional.embedding_bag(ngrams_, table, starts, mode="mean")
    return bags @ out.T + bias


def ngrams(text: str) -> Array:
    """Return the table rows of a text's n-grams, within words and at their borders, without digits and punctuation."""
    words = _NO_LETTERS.sub(" ", text[:MOST_CHARACTERS].lower()).strip()
    if not words:
        return np.zeros(0, dtype=np.int64)
    codes = np.frombuffer(f" {words} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    between = codes == ord(" ")
    found = []
    hashes = np.zeros_like(codes)
    for length in range(1, min(_LONGEST_NGRAM, len(codes)) + 1):
        last = codes[length - 1 :]
        hashes = hashes[: len(last)] * _PRIME + last
        crosses = between[: len(last)] & (length == 1)
        for middle in range(1, length - 1):
            crosses = crosses | between[middle : middle + len(last)]
        mixed = (hashes ^ np.uint32(length)) * _GOLDEN
        found.append(((mixed >> np.uint32(7)) % np.uint32(BUCKETS))[~crosses])
    return np.concatenate(found).astype(np.int64)
