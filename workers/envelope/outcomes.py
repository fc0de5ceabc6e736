"""The result rows of an envelope, per item and task."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import BlobsUnavailable, InputUnavailable, InvalidInput, without_text
from producers.wire.messages import BadItem, Envelope, Item
from producers.wire.result_files import ResultFiles
from results_store.errors import InvalidRow
from results_store.records import Claim, Result, ResultState
from results_store.sql.columns import json_text
from workers.batching.roster import ServedModel
from workers.batching.work import Cancelled, Computed, Entry, Expired, Failed
from workers.models.interface import output_files, returned
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Model, Prepared

logger = logging.getLogger(__name__)

Error: TypeAlias = dict[str, Any]

Params: TypeAlias = Mapping[Task, msgspec.Struct]

#: The waits between attempts to store a file.
_FILES_AGAIN_S = (0.2, 1.0, 3.0)


def described(error: InvalidInput) -> Error:
    """Return an input's error as it is stored in the row."""
    told: Error = {"kind": type(error).__name__, "field": error.field, "message": str(error)}
    if isinstance(error, InputUnavailable) and error.momentary:
        told["momentary"] = True
        if error.retry_after_s is not None:
            told["retry_after_s"] = error.retry_after_s
    return told


def ended(envelope: Envelope, item: Item, state: ResultState, error: Error | None = None) -> list[Result]:
    """Return a result of `state` for each of the item's tasks."""
    return [result(envelope, item, task, state, error) for task in item.tasks]


def malformed(envelope: Envelope, bad_items: Iterable[BadItem]) -> list[Result]:
    """Return the failed results of the items that could not be decoded."""
    rows: list[Result] = []
    for bad in bad_items:
        error = {"kind": "InvalidMessage", "message": bad.error}
        rows += ended(envelope, Item(bad.seq, "", bad.tasks), ResultState.FAILED, error)
    return rows


def given_up(envelope: Envelope, claim: Claim) -> list[Result]:
    """Return the results of an envelope that is not computed: it was cancelled, or begun too often.

    The store adds the reason to the failed results, and keeps the envelope for a replay.
    """
    state = ResultState.FAILED if claim is Claim.DEAD else ResultState.CANCELLED
    return [row for item in envelope.items for row in ended(envelope, item, state)]


def result(
    envelope: Envelope, item: Item, task: str, state: ResultState, error: Error | None = None, **computed: Any
) -> Result:
    """Return an item's result; `computed` are the fields that only a computed one has."""
    return Result(
        job=envelope.job,
        seq=item.seq,
        task=task,
        envelope=envelope.id,
        state=state,
        key=item.key,
        error=error,
        model=envelope.model,
        queued_at=envelope.queued_at,
        **computed,
    )


def answered(waited: Sequence[tuple[Entry, Model, Params]], calls: ClassCalls) -> list[dict[str, Any]]:
    """Return for each entry its finished answers by task, or the exceptions raised instead.

    The answers of a task are finished together. Answers that hold files are left out: `finished` makes them one at a
    time, so that not all files of an envelope are in memory at once.
    """
    found: list[dict[str, Any]] = [{} for _ in waited]
    together: dict[tuple[int, str], list[tuple[int, Task, msgspec.Struct]]] = {}
    for place, (entry, model, params) in enumerate(waited):
        for task, own in params.items() if isinstance(entry.outcome, Computed) else ():
            if not task.kind.makes_files:
                together.setdefault((id(model), task.name), []).append((place, task, own))
    for rows in together.values():
        entries = [waited[place][0] for place, _, _ in rows]
        place, task, _ = rows[0]
        made = _finished(calls, waited[place][1], task, entries, [own for _, _, own in rows])
        for (place, _, _), answer in zip(rows, made, strict=True):
            found[place][task.name] = answer
    return found


def _finished(
    calls: ClassCalls, model: Model, task: Task, entries: Sequence[Entry], params: Sequence[msgspec.Struct]
) -> list[Any]:
    outputs = [entry.outcome.outputs[task.name] for entry in entries if isinstance(entry.outcome, Computed)]
    prepared = [entry.prepared for entry in entries]
    return calls.for_many(model, "finish_many", outputs, params, prepared, fixed=(task,))


def finished(
    envelope: Envelope,
    item: Item,
    entry: Entry,
    served: ServedModel,
    params: Params,
    answers: Mapping[str, Any],
    calls: ClassCalls,
    files: ResultFiles | None = None,
) -> Iterator[Result]:
    """Yield the results of the entry's outcome for the tasks in `params`; none if the item was interrupted.

    `answers` are the entry's answers from `answered`.
    """
    outcome = entry.outcome
    for task, own in params.items():
        match outcome:
            case Computed():
                if task.name in answers:
                    answer = answers[task.name]
                else:
                    [answer] = _finished(calls, served.model, task, [entry], [own])
                row = _computed(envelope, item, outcome, entry.prepared, served, task, answer)
                yield _without_files(row, files) if task.kind.makes_files else row
            case Failed():
                error = {"kind": outcome.kind, "message": outcome.message}
                if outcome.traceback:
                    error["traceback"] = outcome.traceback
                yield result(envelope, item, task.name, ResultState.FAILED, error, batch=outcome.batch)
            case Cancelled():
                yield result(envelope, item, task.name, ResultState.CANCELLED)
            case Expired():
                yield result(envelope, item, task.name, ResultState.EXPIRED)


def _computed(
    envelope: Envelope,
    item: Item,
    computed: Computed,
    prepared: Prepared,
    served: ServedModel,
    task: Task,
    answer: Any,
) -> Result:
    state, error, output, vector = ResultState.SUCCEEDED, None, None, None
    try:
        if isinstance(answer, Exception):
            raise answer
        kept = returned.answer(served.model, task, answer)
        output, vector = (None, kept.tobytes()) if isinstance(kept, np.ndarray) else (kept, None)
    except Exception as fault:  # noqa: BLE001 - a bug in a model's own code fails this result only
        where = without_text(fault)  # the text is in the row
        logger.error("envelope %s, item %s, task %s: finishing failed: %s", envelope.id, item.seq, task.name, where)  # noqa: TRY400
        state, error = ResultState.FAILED, {"kind": "ModelError", "message": returned.said(fault, "finishing failed")}
    return result(
        envelope,
        item,
        task.name,
        state,
        error,
        output=output,
        vector=vector,
        model_revision=served.revision,
        precision=served.precision,
        tokens=prepared.size,
        batch=computed.batch,
        batched_at=computed.batched_at,
        computed_at=computed.computed_at,
    )


def storable(row: Result) -> Result:
    """Return a row, or its failure if no database can hold its answer."""
    try:
        json_text(row.output, "its answer")
        json_text(row.error, "its error")
    except InvalidRow as error:
        detail = {"kind": "ModelError", "message": f"cannot be stored: {returned.text(error)}"}
        return replace(row, state=ResultState.FAILED, output=None, vector=None, error=detail)
    return row


def _without_files(row: Result, files: ResultFiles | None) -> Result:
    """Store the files of a row's output before the row is stored, and replace them by references.

    If the storage is away, the call tries again for a few seconds. Then the result fails, and is computed again later.
    """
    if row.state is not ResultState.SUCCEEDED:
        return row
    assert files is not None, "a node that serves such a kind has a storage for files, or does not start"
    for wait_s in (*_FILES_AGAIN_S, None):
        try:
            return replace(row, output=output_files.put_away(row.output, partial(files.put, row.job)))
        except BlobsUnavailable as error:
            if wait_s is None:
                logger.warning(
                    "job %s, item %s, task %s: the result's file cannot be stored: %s",
                    row.job,
                    row.seq,
                    row.task,
                    error,
                )
                detail = {"kind": "BlobsUnavailable", "message": str(error), "momentary": True}
                return replace(row, state=ResultState.FAILED, output=None, error=detail)
            time.sleep(wait_s)
    raise AssertionError("the last try returns")


def last_batch(results: Iterable[Result]) -> tuple[float, float] | None:
    """Return when the last batch of results was formed and computed (Unix seconds); None if none was computed."""
    times = [(row.computed_at, row.batched_at) for row in results if row.computed_at and row.batched_at]
    computed_at, batched_at = max(times, default=(None, None))
    return (batched_at, computed_at) if batched_at and computed_at else None
