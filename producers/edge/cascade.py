"""The decisions of a cascade: whether the site's answer stands, and the result of an item. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from producers.wire.edge.edge_settings import EdgeTask
from results_store.edge.edge_spool import EdgeItem
from results_store.records import Result, ResultState

#: The field of the first label that says who answered. The output keeps the form of its kind.
NOTE = "cascade"

#: Errors of an input that every model would refuse.
_OF_INPUT = ("InvalidInput", "InputTooLarge", "InputUnavailable", "UnknownTask")

Answer = Mapping[str, Any]


class Why(StrEnum):
    """The reason for which a result is the site's or the centre's."""

    CONFIDENT = "confident"
    STAYS = "stays-on-site"
    UNSURE = "unsure"
    SITE_FAILED = "site-failed"
    ONLY_AT_CENTRE = "only-at-centre"
    LOAD = "load"
    DEADLINE = "deadline"
    SPOOL_FULL = "spool-full"
    REFUSED = "centre-refused"
    FAILED = "centre-failed"


#: The state of an answer of the centre's that is none: it did not take the item.
REFUSED = "refused"


def answer_of(row: Result | Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a result that the spool keeps: of a row of the site's store, or of the gateway's JSON."""
    fields = ("state", "output", "error", "model", "model_revision", "precision", "tokens")
    if isinstance(row, Result):
        return {name: getattr(row, name) for name in fields} | {"state": row.state.value}
    return {name: row.get(name) for name in fields}


#: The kind of an answer that the centre was not asked for: the spool had no room.
SPOOL_FULL = "SpoolFull"


def refused(kind: str, message: str) -> dict[str, Any]:
    """Return the answer of a centre that did not take an item."""
    return {"state": REFUSED, "error": {"kind": kind, "message": message}}


def confidence(output: object) -> float | None:
    """Return the score of the best label, the first one; None for an answer without."""
    score = _best(output).get("score")
    return float(score) if isinstance(score, int | float) else None


def label(output: object) -> str | None:
    """Return the best label, the first one."""
    best = _best(output)
    return str(best["label"]) if "label" in best else None


def _best(output: object) -> Mapping[str, Any]:
    """Return the first label of an answer with its score; nothing of an answer without labels."""
    first = output[0] if isinstance(output, list) and output else None
    return first if isinstance(first, dict) else {}


def stays(task: EdgeTask, params: Mapping[str, Any] | None, mark: str) -> bool:
    """Return whether an item must not leave: by its task or by its mark."""
    return task.stay_on_site or bool((params or {}).get(mark))


def escalates(task: EdgeTask, answer: Answer, *, marked: bool) -> Why | None:
    """Return why the centre is asked, or None if the site's answer is final."""
    if marked:
        return None
    if answer["state"] == ResultState.FAILED:
        kind = (answer.get("error") or {}).get("kind")
        return None if kind in _OF_INPUT else Why.SITE_FAILED
    score = confidence(answer.get("output"))
    return Why.UNSURE if score is None or score < task.threshold else None


def final(item: EdgeItem, why: Why) -> Result:
    """Return the result of an item to which the site alone answers: its answer, its error, or nothing in time."""
    note = {"by": "site", "why": why.value}
    if item.site is not None:
        return _row(item, _noted(item.site, note))
    if why is Why.DEADLINE:
        return _row(item, {"state": ResultState.EXPIRED.value})
    return _row(item, {"state": ResultState.FAILED.value, "error": {**_lack(item, why), NOTE: note}})


def _lack(item: EdgeItem, why: Why) -> dict[str, Any]:
    """Return the error of an item without any answer."""
    if why is Why.SPOOL_FULL:
        return {"kind": SPOOL_FULL, "message": "the site has no model for it, and no room to wait for the centre"}
    return (item.centre or {}).get("error") or {"kind": "CentreFailed", "message": "the centre has no answer"}


def of_centre(item: EdgeItem, *, only_at_centre: bool = False) -> Result:
    """Return the result of an item to which the centre answered: its answer beside the site's, or the site's alone."""
    centre = item.centre or {}
    if centre.get("state") == ResultState.SUCCEEDED.value:
        alone = Why.ONLY_AT_CENTRE if only_at_centre else Why.LOAD
        reason = alone if item.site is None else Why.UNSURE
        note: dict[str, Any] = {"by": "centre", "why": reason.value}
        if item.site is not None:
            failed = item.site["state"] != ResultState.SUCCEEDED.value
            note["site"] = item.site.get("error") if failed else item.site.get("output")
            note["why"] = Why.SITE_FAILED.value if failed else reason.value
        return _row(item, _noted(centre, note))
    reasons = {REFUSED: Why.REFUSED, ResultState.EXPIRED.value: Why.DEADLINE}
    return final(item, reasons.get(str(centre.get("state")), Why.FAILED))


def cancelled(item: EdgeItem) -> Result:
    """Return the result of an item whose job was cancelled."""
    return _row(item, {"state": ResultState.CANCELLED.value})


def returns(item: EdgeItem, task: EdgeTask) -> bool:
    """Return whether the site has to answer after all: the centre was to share the load, and did not."""
    failed = (item.centre or {}).get("state") in (REFUSED, ResultState.FAILED.value)
    return failed and shared(item, task)


def shared(item: EdgeItem, task: EdgeTask) -> bool:
    """Return whether an item for the centre is one that the site can compute too, and has not computed."""
    return item.site is None and not task.only_at_centre


def returned(item: EdgeItem) -> Why:
    """Return why the site answers to a shared item after all."""
    kind = ((item.centre or {}).get("error") or {}).get("kind")
    return Why.SPOOL_FULL if kind == SPOOL_FULL else Why.REFUSED


def agreed(item: EdgeItem) -> bool | None:
    """Return whether site and centre gave the same label; None without both."""
    own, other = (label((answer or {}).get("output")) for answer in (item.site, item.centre))
    return None if own is None or other is None else own == other


def _noted(answer: Answer, note: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer whose first label has the note; a failed one has it in its error."""
    output, error = answer.get("output"), answer.get("error")
    if isinstance(output, list) and output and isinstance(output[0], dict):
        return {**answer, "output": [{**output[0], NOTE: note}, *output[1:]]}
    if isinstance(output, dict):
        return {**answer, "output": {**output, NOTE: note}}
    return {**answer, "error": {**error, NOTE: note}} if isinstance(error, dict) else dict(answer)


def _row(item: EdgeItem, answer: Answer) -> Result:
    return Result(
        job=item.job,
        seq=item.seq,
        task=item.task,
        envelope=item.envelope,
        key=item.key,
        queued_at=item.queued_at,
        state=ResultState(answer["state"]),
        **{name: answer.get(name) for name in ("output", "error", "model", "model_revision", "precision", "tokens")},
    )
