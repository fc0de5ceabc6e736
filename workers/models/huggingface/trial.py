"""A trial of a loaded checkpoint: sample inputs alone and together.

A network whose passes fail, or whose answers depend on the neighbours in a batch, is refused when the worker starts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.wire.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from workers.models.interface.model import Array, Arrays, Model, Prepared

logger = logging.getLogger(__name__)

#: Sample inputs of a trial.
_SAMPLES = 4

#: The largest mean difference between an output alone and with neighbours, as a share of the output's mean size, by
#: whether the backend computes in fp32. Padding and another order of sums change less.
_MARGINS = {True: 1e-3, False: 5e-2}


#: The largest mean difference to the answers of the same weights in torch and fp32, by precision.
_OF_TORCH = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 5e-2, "int8": 0.25}


class DependsOnNeighbours(ConfigurationError):
    """The outputs of an input depend on the other inputs of a batch."""


def run(model: Model, where: str, *, compared: bool, fp32: bool) -> None:
    """Run sample inputs alone and together; `compared` says whether the outputs must be equal.

    Raises ConfigurationError if the pass of an input alone fails, DependsOnNeighbours if an output depends on others.
    """
    rows = _rows(model)
    if not rows:
        logger.warning("%s: it refuses all sample inputs, so it is not tried before it serves", where)
    try:
        alone = [_outputs(model, [row]) for row in rows]
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # transformers' networks raise errors of every type
        problem = f"the network cannot compute a sample input: {_said(error)}"
        raise ConfigurationError(f"{where}: {problem}; the checkpoint is of a kind that is not served") from error
    numbers = [output for own in alone for output in own.values() if output.dtype.kind == "f"]
    if numbers and all(np.isnan(output).any() for output in numbers):
        problem = "its numbers are not numbers (NaN) for every sample input: weights are damaged, or beyond a precision"
        raise ConfigurationError(f'{where}: {problem}; pull it again, or set precision = "fp32"')
    try:
        together = _outputs(model, rows)
    except Exception as error:  # noqa: BLE001 - the worker halves such a batch, down to single rows
        logger.warning("%s: its batches fail, so its inputs are computed alone, which is slow: %s", where, _said(error))
        return
    for place, own in enumerate(alone if compared else ()):
        for task, output in own.items():
            difference = _difference(output[0], together[task][place])
            if not difference <= _MARGINS[fp32]:  # NaN is no number that is less
                problem = f"the answers of {task!r} depend on the other inputs of a batch (by {difference:.2g})"
                remedy = "use another checkpoint" if fp32 else 'use "fp32", or compress it again (docs/compression.md)'
                raise DependsOnNeighbours(f"{where}: {problem}, which is not served; {remedy}")


def compare(model: Model, other: Model, file: str, precision: str) -> None:
    """Compare outputs for sample inputs with those of the same weights in torch.

    Raises ConfigurationError, with the difference, if they differ by more than the precision explains.
    """
    for row in _rows(model):
        found, expected = _outputs(model, [row]), _outputs(other, [row])
        for task, output in expected.items():
            difference = _difference(output[0], found[task][0])
            if not difference <= _OF_TORCH[precision]:  # NaN is no number that is less
                problem = f"its outputs for {task!r} differ from those of the torch weights beside it"
                share = f"by {difference:.2g} of their size on average, over {_OF_TORCH[precision]:.2g}"
                raise ConfigurationError(f"{file}: {problem} {share}; export it again, or remove what is older")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _rows(model: Model) -> list[Prepared]:
    """Return prepared samples that have all tasks of the first one.

    The second one is half of the first if it is a text. Networks that attend in chunks (Reformer) can answer very
    short texts as alone, and others not.
    """
    items = list(model.samples(2 * _SAMPLES))
    if items and isinstance(text := items[0][0], str):
        items.insert(1, (text[: len(text) // 2], items[0][1]))
    rows: list[tuple[Prepared, Mapping[str, Any]]] = []
    for content, params in items:
        try:
            rows.append((model.prepare(content, params), params))
        except InvalidInput:  # a sample that this checkpoint does not read
            continue
    return [row for row, params in rows if params.keys() == rows[0][1].keys() and not row.refused][:_SAMPLES]


def _outputs(model: Model, rows: Sequence[Prepared]) -> Arrays:
    tasks = rows[0].aside if rows else {}
    return model.forward(model.collate(rows), {task: np.arange(len(rows)) for task in tasks}) if rows else {}


def _difference(alone: Array, together: Array) -> float:
    """Return the mean difference as a share of the mean size, over what both have.

    Equal infinities do not differ, and neither do two NaN. A NaN in one alone makes the difference NaN.
    """
    if alone.dtype.kind != "f" or not alone.size:
        return 0.0
    there = together[tuple(slice(size) for size in alone.shape)]
    unlike = (alone != there) & ~(np.isnan(alone) & np.isnan(there))
    sizes = np.abs(alone[np.isfinite(alone)])
    size = max(float(sizes.mean()), 1e-6) if sizes.size else 1.0
    return float(np.abs(alone[unlike] - there[unlike]).sum(dtype=np.float64)) / alone.size / size
