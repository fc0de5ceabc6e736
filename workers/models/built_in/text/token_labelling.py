"""Token classification (entities) by a head of the text model, in the same pass as its other tasks.

A text too long for one pass is read in windows. The first window is the input of the other heads as well; the further
windows get passes of their own. `workers.models.huggingface.text.entities` turns scores into entities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.kinds.text import TokenClassificationParams
from workers.models.huggingface.text.entities import Entities, EntityWindows
from workers.models.interface.model import Array, Arrays

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding

KIND = "token-classification"

#: The number of windows in a pass.
_WINDOWS_AT_ONCE = 8

#: Fills the rows of `window_of/TASK` that have fewer windows than others.
_NONE = -1

# --- in the parent process ------------------------------------------------------------------------


def read(
    content: str, whole: Encoding, params: Mapping[str, Any], readers: Mapping[str, Entities]
) -> tuple[Arrays, dict[str, EntityWindows]]:
    """Return the arrays that token tasks add to a row, and each task's windows for `finish`. Raises InvalidInput."""
    asides = {
        task: readers[task].windows(content, whole, own)
        for task, own in params.items()
        if isinstance(own, TokenClassificationParams)
    }
    arrays: Arrays = {}
    for task, windows in asides.items():
        first, *further = windows.encodings
        arrays["shapes"] = shapes(content, first)  # of the first window, which is the same for all tasks
        if further:
            arrays[f"window_ids/{task}"] = np.concatenate(
                [np.asarray(window.ids, dtype=np.int32) for window in further]
            )
            arrays[f"window_shapes/{task}"] = np.concatenate([shapes(content, window) for window in further])
            arrays[f"window_lengths/{task}"] = np.array([len(window.ids) for window in further], dtype=np.int32)
    return arrays, asides


def shapes(text: str, encoding: Encoding) -> Array:
    """Return a code for the spelling of each token, uint8 `(tokens,)`.

    0: lower case or no letters; 1: a capital first; 2: all capitals; 3: digits; 4: digits and letters; 5: a special
    token, which covers no text; 6: a later part of a word, with a capital.
    """
    found = np.zeros(len(encoding.ids), dtype=np.uint8)
    for place, (start, end) in enumerate(encoding.offsets):
        part = text[start:end]
        if not part:
            found[place] = 5
        elif part.isdigit():
            found[place] = 3
        elif not part.islower():
            found[place] = _shape(part, start > 0 and text[start - 1].isalpha())
    return found


def _shape(part: str, within: bool) -> int:
    if any(character.isdigit() for character in part):
        return 4
    if not any(character.isupper() for character in part):
        return 0
    if within:
        return 6
    return 2 if len(part) > 1 and part.isupper() else 1


def collate(rows: Sequence[Arrays], tasks: Sequence[str], length: int, pad_id: int) -> Arrays:
    """Return the arrays that token tasks add to a batch.

    `shapes` is `(rows, tokens)`; `window_ids`, `window_shapes` and `window_mask` are `(windows, tokens)`;
    `window_of/TASK`, `(rows, most windows)`, has the indices of each row's windows.
    """
    if not any("shapes" in row for row in rows):
        return {}
    none = np.zeros(0, dtype=np.uint8)
    batch = {"shapes": _padded([row.get("shapes", none) for row in rows], length, 0)}
    ids: list[Array] = []
    written: list[Array] = []
    for task in tasks:
        counts = [len(row.get(f"window_lengths/{task}", none)) for row in rows]
        table = np.full((len(rows), max(counts)), _NONE, dtype=np.int64)
        for row, (own, count) in enumerate(zip(rows, counts, strict=True)):
            if count:
                table[row, :count] = np.arange(len(ids), len(ids) + count)
                ids += _split(own, "ids", task)
                written += _split(own, "shapes", task)
        if table.size:
            batch[f"window_of/{task}"] = table
    if ids:
        longest = max(map(len, ids))
        batch["window_ids"], batch["window_shapes"] = _padded(ids, longest, pad_id), _padded(written, longest, 0)
        batch["window_mask"] = _padded([np.ones(len(each), dtype=np.bool_) for each in ids], longest, 0)
    return batch


def _split(row: Arrays, name: str, task: str) -> list[Array]:
    return np.split(row[f"window_{name}/{task}"], np.cumsum(row[f"window_lengths/{task}"])[:-1])


def _padded(sequences: Sequence[Array], length: int, value: int) -> Array:
    found = np.full((len(sequences), length), value, dtype=max(sequences, key=len).dtype)
    for row, sequence in zip(found, sequences, strict=True):
        row[: len(sequence)] = sequence
    return found


# --- on the device --------------------------------------------------------------------------------


def taken(arrays: Arrays) -> Arrays:
    """Remove the further windows from a batch and return them: the backbone's first pass does not read them."""
    return {name: arrays.pop(name) for name in list(arrays) if name.startswith("window_")}


def further(
    windows: Arrays, wanted: Mapping[str, Array], scores: Callable[[Arrays, Sequence[str]], Mapping[str, torch.Tensor]]
) -> dict[str, list[list[Array]]]:
    """Return, by task and row, the scores of all windows after the first. `scores` runs the backbone and heads."""
    tasks = [task for task in wanted if f"window_of/{task}" in windows]
    found: dict[str, list[Array]] = {task: [] for task in tasks}
    for start in range(0, len(windows["window_ids"]) if tasks else 0, _WINDOWS_AT_ONCE):
        chosen = slice(start, start + _WINDOWS_AT_ONCE)
        batch = {name: windows[f"window_{name}"][chosen] for name in ("ids", "mask", "shapes")}
        for task, own in scores(batch, tasks).items():
            found[task] += list(own.float().cpu().numpy())
    return {
        task: [[found[task][n] for n in places if n != _NONE] for places in windows[f"window_of/{task}"][wanted[task]]]
        for task in tasks
    }


def joined(first: Array, more: Sequence[Sequence[Array]]) -> Array:
    """Join the scores of first and further windows into `(rows, most windows, tokens, labels)`."""
    lengths = [len(scores) for own in more for scores in own]
    shape = (len(first), 1 + max(map(len, more), default=0), max(first.shape[1], *lengths, 0), first.shape[2])
    found = np.zeros(shape, dtype=np.float32)
    found[:, 0, : first.shape[1]] = first
    for row, own in enumerate(more):
        for place, scores in enumerate(own, start=1):
            found[row, place, : len(scores)] = scores
    return found
