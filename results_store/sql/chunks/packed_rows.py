"""Pack the results of an envelope into chunks, as far as they are alike and simple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from results_store.records import Result, ResultChunk, ResultState

#: Fewer results than this are stored as rows: a chunk costs about as much as so many.
LEAST: Final = 8

_SHARED = ("job", "envelope", "model", "model_revision", "precision", "queued_at", "stored_at")

_shared = attrgetter(*_SHARED)
_ran = attrgetter("batch", "batched_at", "computed_at")


def packed(results: Sequence[Result], *, least: int = LEAST) -> tuple[list[ResultChunk], list[Result]]:
    """Return the results of an envelope as chunks, one for a task, and the results that stay rows.

    A task's succeeded results are packed if they are lists of labels with scores, or vectors of the same dimension,
    and differ only in their items and batches. Fewer than `least` results stay rows.
    """
    by_task: dict[str, list[Result]] = {}
    rows: list[Result] = []
    for result in results:
        simple = result.state is ResultState.SUCCEEDED and result.error is None
        (by_task.setdefault(result.task, []) if simple else rows).append(result)
    chunks = []
    for task, own in by_task.items():
        outputs = _outputs(own) if len(own) >= least and _are_alike(own) else None
        if outputs is None:
            rows += own
        else:
            chunks.append(_chunk(task, own, outputs))
    return chunks, rows


def _are_alike(results: Sequence[Result]) -> bool:
    first = _shared(results[0])
    ascending = all(before.seq < after.seq for before, after in pairwise(results))
    return ascending and all(_shared(result) == first for result in results)


def _outputs(results: Sequence[Result]) -> Mapping[str, Any] | None:
    """Return the columns of the outputs, or None if they are neither labels nor vectors."""
    first = results[0].vector
    if first is None:
        return _labelled(results)
    if all(result.vector is not None and len(result.vector) == len(first) for result in results):
        vectors = b"".join(result.vector for result in results if result.vector is not None)
        return {"vectors": vectors, "dimension": len(first) // 4}
    return None


def _labelled(results: Sequence[Result]) -> Mapping[str, Any] | None:
    labels: dict[str, int] = {}
    pairs: list[Any] = []
    for result in results:
        if result.vector is not None or type(result.output) is not list or not all(map(_is_labelled, result.output)):
            return None
        pairs += result.output
    codes = [labels.setdefault(pair["label"], len(labels)) for pair in pairs]
    widths = [len(result.output) for result in results]
    same = widths[0] if widths.count(widths[0]) == len(widths) else widths
    return {"labels": [*labels], "widths": same, "codes": codes, "scores": [pair["score"] for pair in pairs]}


def _is_labelled(pair: Any) -> bool:
    return type(pair) is dict and len(pair) == 2 and type(pair.get("label")) is str and type(pair.get("score")) is float


def _chunk(task: str, results: Sequence[Result], outputs: Mapping[str, Any]) -> ResultChunk:
    batches: dict[tuple[str | None, float | None, float | None], int] = {}
    keys = [result.key for result in results]
    return ResultChunk(
        task=task,
        seqs=[result.seq for result in results],
        tokens=[result.tokens for result in results],
        batch_of=[batches.setdefault(_ran(result), len(batches)) for result in results],
        batches=list(batches),
        keys=None if not any(key is not None for key in keys) else keys,
        **dict(zip(_SHARED, _shared(results[0]), strict=True)),
        **outputs,
    )
