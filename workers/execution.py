"""The life of an envelope in a worker: decode → claim → prepare → batch → finish → store.

What fails for one item is that item's result; what fails for the envelope as a whole is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from producers.catalogue import Catalogue, Task
from producers.errors import InvalidInput, InvalidMessage
from producers.messages import BadItem, Envelope, Item, decode
from results_store.export import plain
from results_store.records import Claim, Result, ResultState
from results_store.writer import Writer
from workers import outcomes
from workers.batching.batcher import Batcher, ServedModel
from workers.batching.pool import Waiting
from workers.batching.work import Entry, Interrupted
from workers.inputs import InputLimits, carried, read

logger = logging.getLogger(__name__)

Params = Mapping[Task, msgspec.Struct]


class EnvelopeInterrupted(Exception):
    """The worker stops before the envelope is done; it goes back to its queue."""


@dataclass(frozen=True, slots=True)
class Step:
    """One item after preparation: the results it already has, and the entry that waits for the rest."""

    item: Item
    results: list[Result]
    entry: Entry | None = None
    params: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Runs envelopes of the models served here. Thread-safe: one thread an envelope."""

    catalogue: Catalogue
    limits: InputLimits
    models: Mapping[str, ServedModel]
    batcher: Batcher
    writer: Writer

    def run(self, raw: object, *, reply: bool = False) -> dict[str, Any]:
        """Run one envelope and return a summary, once its results are committed; with `reply`, the results as well.

        Raises InvalidMessage if it cannot be read, EnvelopeInterrupted if this worker stops meanwhile.
        """
        envelope, bad = self._decode(raw)
        claim = self.writer.claim(envelope.id) if envelope.durable else Claim.UNKNOWN
        if claim in (Claim.DONE, Claim.HELD):
            return {"items": len(envelope.items), "skipped": claim.name.lower()}
        done = [row for item in bad for row in outcomes.malformed(envelope, item)]
        if claim is Claim.CANCELLED:
            rows = [row for item in envelope.items for row in outcomes.ended(envelope, item, ResultState.CANCELLED)]
            return self._store(envelope, [*done, *rows])
        if claim is Claim.DEAD:
            return self._bury(envelope, done)
        unlisted = (envelope.id,) if claim is Claim.UNKNOWN else ()
        steps = [self._prepare(envelope, item) for item in envelope.items]
        interrupted = self._batch([step.entry for step in steps if step.entry])
        for step in steps:
            done += [*step.results, *self._finish(envelope, step)]
        if interrupted:
            # what was computed is kept: the unique key keeps the second run from writing it again
            self.writer.commit(done, unlisted=unlisted)
            raise EnvelopeInterrupted(f"envelope {envelope.id}: this worker stops; it goes back to its queue")
        summary = self._store(envelope, done, unlisted)
        return summary | {"results": [plain(row) for row in done]} if reply else summary

    def _decode(self, raw: object) -> tuple[Envelope, list[BadItem]]:
        envelope, bad = decode(raw)
        if envelope.model not in self.models:
            served = ", ".join(self.models)
            raise InvalidMessage(f"model {envelope.model!r} is not served here; this worker serves {served}")
        return envelope, bad

    def _prepare(self, envelope: Envelope, item: Item) -> Step:
        if envelope.deadline_at is not None and envelope.deadline_at <= time.time():
            return Step(item, outcomes.ended(envelope, item, ResultState.EXPIRED))
        try:
            params, refused = self._params(envelope, item)
            return self._prepared(envelope, item, params, refused)
        except InvalidInput as error:
            return Step(item, outcomes.ended(envelope, item, ResultState.FAILED, outcomes.described(error)))
        except Exception as error:  # a model's own code: its bug costs this item, never the envelope
            logger.exception("envelope %s, item %s: preparation failed", envelope.id, item.seq)
            detail = {"kind": "ModelError", "message": f"preparation failed: {type(error).__name__}: {error}"}
            return Step(item, outcomes.ended(envelope, item, ResultState.FAILED, detail))

    def _params(self, envelope: Envelope, item: Item) -> tuple[Params, dict[str, InvalidInput]]:
        """Return the typed parameters of the tasks that this item may have, and the refusals of the others."""
        params: dict[Task, msgspec.Struct] = {}
        refused: dict[str, InvalidInput] = {}
        for name in item.tasks:
            try:
                task = self.catalogue.task(name)
                if task.model != envelope.model:
                    raise InvalidInput("task", f"{name!r} is served by {task.model!r}, not {envelope.model!r}")
                params[task] = self.catalogue.check_params(task, item.params.get(name, {}), field=f"params.{name}")
            except InvalidInput as error:
                refused[name] = error
        return params, refused

    def _prepared(self, envelope: Envelope, item: Item, params: Params, refused: Mapping[str, InvalidInput]) -> Step:
        entry = None
        if params:
            model = self.models[envelope.model].model
            checked = self.catalogue.check_input(next(iter(params)), carried(item.input, self.limits), field="input")
            row = model.prepare(read(checked, self.limits), {task.name: own for task, own in params.items()})
            refused = {**refused, **row.refused}
            params = {task: own for task, own in params.items() if task.name not in refused}
            if params:
                waiting = Waiting(
                    envelope.model,
                    int(envelope.priority),
                    model.cost(row),
                    time.time(),
                    envelope.deadline_at,
                    row.content,
                    len(params),
                    envelope.tenant,
                )
                entry = Entry(row, tuple(task.name for task in params), waiting, job=envelope.job, seq=item.seq)
        results = [
            outcomes.result(envelope, item, name, ResultState.FAILED, outcomes.described(error))
            for name, error in refused.items()
        ]
        return Step(item, results, entry, params)

    def _batch(self, entries: Sequence[Entry]) -> bool:
        """Wait for the entries' outcomes; return whether any was interrupted."""
        self.batcher.submit(entries).wait()
        return any(isinstance(entry.outcome, Interrupted) for entry in entries)

    def _finish(self, envelope: Envelope, step: Step) -> list[Result]:
        if step.entry is None:
            return []
        model = self.models[envelope.model].model
        return list(outcomes.finished(envelope, step.item, step.entry, model, step.params))

    def _bury(self, envelope: Envelope, malformed: Sequence[Result]) -> dict[str, Any]:
        """Fail the items of an envelope that was begun too often; the store adds why, and keeps it for a replay."""
        rows = [row for item in envelope.items for row in outcomes.ended(envelope, item, ResultState.FAILED)]
        self.writer.commit([*malformed, *rows], dead=[envelope.id])
        return {"items": len(envelope.items), "dead": len(malformed) + len(rows)}

    def _store(self, envelope: Envelope, rows: Sequence[Result], unlisted: Collection[str] = ()) -> dict[str, Any]:
        self.writer.commit(rows, done=[envelope.id], unlisted=unlisted)
        summary: dict[str, Any] = {"items": len(envelope.items)}
        for row in rows:
            summary[row.state.value] = summary.get(row.state.value, 0) + 1
        return summary
