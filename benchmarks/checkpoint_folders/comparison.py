"""Compare our answer to an input with the reference's, within a margin relative to the size of the numbers.

An answer also chooses: a label, a span, a token. If every score is within the margin of the reference's, a choice can
differ only where the reference's own scores of both choices differ by at most twice the margin: such a choice is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The margins by backend and precision: another order of sums, and bfloat16's eight bits.
MARGINS = {"torch-fp32": 1e-4, "fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}

#: The share of a mask's pixels that must be equal: the class of a pixel between two may turn with the last bit.
_SAME_PIXELS = 0.999


@dataclass(frozen=True, slots=True)
class Ranking:
    """The first `count` choices of the reference's ranking `ranked`, from the best to the worst, with all scores."""

    ranked: Sequence[Mapping[str, Any]]
    count: int


@dataclass(frozen=True, slots=True)
class Boxes:
    """All boxes of an image, of which the answer has those whose score is over the threshold."""

    boxes: Sequence[Mapping[str, Any]]
    threshold: float


@dataclass(frozen=True, slots=True)
class Pixels:
    """The scores of each pixel by label, of an image whose pixels each have the best label."""

    scores: Mapping[str, NDArray[np.float32]]


def difference(kind: str, found: Any, expected: Any, margin: float) -> str:
    """Return what differs, or an empty string."""
    if isinstance(expected, tuple(_BY_TYPE)):
        return _BY_TYPE[type(expected)](found, expected, margin)
    if isinstance(expected, list) and expected and isinstance(expected[0], Ranking):
        return _rankings(found, expected, margin)
    if isinstance(expected, np.ndarray) and margin > MARGINS["fp32"]:
        return _direction(found, expected, margin)
    if kind.endswith("-classification") and kind != "token-classification":
        return _labels(found, expected, margin)
    if kind == "image-segmentation":
        return _segments(found, expected, margin)
    if kind == "text-generation":
        found = {"text": found["text"]}
    return _values(found, expected, margin * max(1.0, _largest(expected)))


def _labels(found: Any, expected: Any, margin: float) -> str:
    ours, theirs = ({one["label"]: one["score"] for one in answer} for answer in (found, expected))
    if set(ours) != set(theirs):
        return f"labels {sorted(ours)}, not {sorted(theirs)}"
    scale = max(1.0, _largest(expected))
    best, own = max(theirs, key=theirs.__getitem__), max(ours, key=ours.__getitem__)
    if best != own and theirs[best] - theirs[own] > 2 * margin * scale:
        return f"{own} is best, not {best}"
    return _values(ours, theirs, margin * scale)


def _segments(found: Any, expected: Any, margin: float) -> str:
    if [one["label"] for one in found] != [one["label"] for one in expected]:
        return f"segments {[one['label'] for one in found]}, not {[one['label'] for one in expected]}"
    for ours, theirs in zip(found, expected, strict=True):
        if problem := _values(ours["score"], theirs["score"], margin):
            return problem
        mask = _mask(ours)
        if mask.shape != theirs["mask"].shape or (mask == theirs["mask"]).mean() < _SAME_PIXELS:
            return f"the mask of {ours['label']} differs"
    return ""


def _pixels(found: Any, expected: Pixels, margin: float) -> str:
    """Compare the label of each pixel."""
    every = np.stack(list(expected.scores.values()))
    own = np.full(every.shape[1:], -np.inf)
    for one in found:
        inside = _mask(one)
        if one["label"] not in expected.scores or inside.shape != own.shape:
            return f"the mask of {one['label']} has the shape {inside.shape}, not {own.shape}"
        own[inside] = expected.scores[one["label"]][inside]
    worst = float((every.max(0) - own).max())
    return (
        f"a pixel has a label {worst:.2g} below the best"
        if not worst <= 2 * margin * max(1.0, np.abs(every).max())
        else ""
    )


def _mask(segment: Any) -> NDArray[np.bool_]:
    counts = segment["mask"]["counts"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(segment["mask"]["size"], order="F")


def _direction(found: Any, expected: Any, margin: float) -> str:
    """Compare vectors in low precision by the length of their difference: the error is one of many small ones, and the
    largest of many components is off by several times its share.
    """
    off = float(np.linalg.norm(found - expected)) if found.shape == expected.shape else np.inf
    share = off / max(float(np.linalg.norm(expected)), 1e-6)
    return f"a vector is off by {share:.2g} of its length" if not share <= margin else ""


def _ranking(found: Sequence[Mapping[str, Any]], expected: Ranking, margin: float) -> str:
    """Compare each choice with the reference's of the same rank: the same, or nearly the same score."""
    if len(found) != expected.count:
        return f"{len(found)} parts, not {expected.count}"
    by_choice = {_choice(one): one for one in expected.ranked}
    for ours, best in zip(found, expected.ranked, strict=False):
        same = by_choice.get(_choice(ours))
        if same is None or best["score"] - same["score"] > 2 * margin:
            return f"{_choice(ours)}, not {_choice(best)}"
        if problem := _values(ours, same, margin):
            return problem
    return ""


def _choice(one: Mapping[str, Any]) -> Any:
    return next(one[name] for name in ("token", "entity", "start") if name in one), one.get("end")


def _rankings(found: Sequence[Mapping[str, Any]], expected: Sequence[Ranking], margin: float) -> str:
    """Compare the label of each token."""
    if len(found) != len(expected):
        return f"{len(found)} tokens, not {len(expected)}"
    pairs = zip(found, expected, strict=True)
    return next((problem for ours, theirs in pairs if (problem := _ranking([ours], theirs, margin))), "")


def _boxes(found: Any, expected: Boxes, margin: float) -> str:
    """Match boxes in any order: equal scores have none. A box whose score is near the threshold may be on either side."""
    left = list(found)
    for theirs in sorted(expected.boxes, key=lambda box: -box["score"]):
        match = next((ours for ours in left if _same_box(ours, theirs, margin)), None)
        if match is not None:
            left.remove(match)
        elif theirs["score"] > expected.threshold + margin:
            return f"there is no box {theirs}"
    return f"there is a box {left[0]}" if left else ""


def _same_box(ours: Any, theirs: Any, margin: float) -> bool:
    most = 1 + margin * max(theirs["box"].values())  # whole pixels are cut off
    near = all(abs(ours["box"][side] - theirs["box"][side]) <= most for side in theirs["box"])
    return bool(ours["label"] == theirs["label"] and near and abs(ours["score"] - theirs["score"]) <= margin)


def _values(found: Any, expected: Any, margin: float) -> str:
    if isinstance(expected, Mapping):
        names, theirs = list(expected), list(expected.values())
        same = isinstance(found, Mapping) and set(found) == set(expected)
        ours = [found[name] for name in names] if same else []
        return _values(ours, theirs, margin)
    if isinstance(expected, np.ndarray):
        worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        return f"a vector is off by {worst:.2g}" if not worst <= margin else ""
    if isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return f"{len(found)} parts, not {len(expected)}"
        return next((p for a, b in zip(found, expected, strict=True) if (p := _values(a, b, margin))), "")
    if isinstance(expected, float | np.floating):
        return "" if found is not None and abs(found - expected) <= margin else f"{found}, not {expected}"
    return "" if found == expected else f"{str(found)[:80]!r}, not {str(expected)[:80]!r}"


_BY_TYPE: Mapping[type, Callable[[Any, Any, float], str]] = {Ranking: _ranking, Boxes: _boxes, Pixels: _pixels}


def _largest(value: Any) -> float:
    return max((abs(number) for number in _numbers(value)), default=0.0)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, np.ndarray):
        yield float(np.abs(value).max()) if value.size else 0.0
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, float | np.floating):
        yield float(value)
