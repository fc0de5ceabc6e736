"""Compare our answer to an input with the reference's, within a margin relative to the size of the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

#: The margins by backend and precision: another order of sums, and bfloat16's eight bits.
MARGINS = {"torch-fp32": 1e-4, "fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}

#: The share of a mask's pixels that must be equal: the class of a pixel between two may turn with the last bit.
_SAME_PIXELS = 0.999

#: The share of characters that must have the same tag in low precision.
_SAME_CHARACTERS = 0.95


def difference(kind: str, found: Any, expected: Any, margin: float) -> str:
    """Return what differs, or an empty string."""
    if kind in ("text-classification", "zero-shot-classification", "image-classification", "audio-classification",
                "video-classification"):  # fmt: skip
        return _labels(found, expected, margin)
    if kind == "image-segmentation":
        return _segments(found, expected, margin)
    if kind == "object-detection":
        return _boxes(found, expected, margin)
    if kind == "token-classification" and margin > MARGINS["fp32"]:
        return _tags(found, expected)
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
        counts = ours["mask"]["counts"]
        mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(ours["mask"]["size"], order="F")
        if mask.shape != theirs["mask"].shape or (mask == theirs["mask"]).mean() < _SAME_PIXELS:
            return f"the mask of {ours['label']} differs"
    return ""


def _tags(found: Any, expected: Any) -> str:
    """Compare entities by character, as backends are judged: in low precision a tag between two may turn."""
    size = max((one["end"] for one in (*found, *expected)), default=0)
    ours, theirs = (np.full(size, "", dtype=object) for _ in range(2))
    for tags, answer in ((ours, found), (theirs, expected)):
        for one in answer:
            tags[one["start"] : one["end"]] = one["entity_group"]
    same = float((ours == theirs).mean()) if size else 1.0
    return "" if same >= _SAME_CHARACTERS else f"{same:.1%} of the characters have the same tag"


def _boxes(found: Any, expected: Any, margin: float) -> str:
    """Match boxes in any order: equal scores have none."""
    left = list(found)
    if len(left) != len(expected):
        return f"{len(left)} boxes, not {len(expected)}"
    for theirs in expected:
        match = next((ours for ours in left if _same_box(ours, theirs, margin)), None)
        if match is None:
            return f"there is no box {theirs}"
        left.remove(match)
    return ""


def _same_box(ours: Any, theirs: Any, margin: float) -> bool:
    near = all(abs(ours["box"][side] - theirs["box"][side]) <= 1 for side in theirs["box"])  # whole pixels are cut off
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
