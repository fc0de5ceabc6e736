"""The life of an envelope in a worker: decode → claim → prepare → batch → finish → store.

What fails for one item is that item's result; what fails for the envelope as a whole is raised.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from producers.wire.errors import InvalidMessage
from producers.wire.messages import BadItem, Envelope, decode
from results_store.export.text_export import plain
from results_store.records import Claim, Result, ResultState
from results_store.writer import Writer
from workers.batching.batcher import Batcher
from workers.batching.work import Interrupted, Superseded
from workers.envelope import outcomes
from workers.envelope.derivation import Derivation
from workers.envelope.preparation import Preparation, Step


class EnvelopeInterrupted(Exception):
    """The worker stops before the envelope is done; it goes back to its queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(Preparation):
    """Runs envelopes of the models served here. Thread-safe: one thread an envelope."""

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
        turn = self.turn(envelope)
        derivation = self.derivation(envelope.job, envelope.items, turn)
        with turn:
            steps = [self.prepare(envelope, item, derivation) for item in envelope.items]
        steps = self._batched(envelope, steps, derivation)
        interrupted = any(step.entry and isinstance(step.entry.outcome, Interrupted) for step in steps)
        with self.finishing(envelope, turn):
            for step in steps:
                done += [*step.results, *self.finish(envelope, step)]
        if interrupted:
            # what was computed is kept: the unique key keeps the second run from writing it again
            self.writer.commit(done, unlisted=unlisted, stepped=_stepped(envelope))
            raise EnvelopeInterrupted(f"envelope {envelope.id}: this worker stops; it goes back to its queue")
        summary = self._store(envelope, done, unlisted)
        return summary | {"results": [plain(row) for row in done]} if reply else summary

    def _decode(self, raw: object) -> tuple[Envelope, list[BadItem]]:
        envelope, bad = decode(raw)
        models = self.offer.now.models
        if envelope.model not in models:
            served = ", ".join(models)
            raise InvalidMessage(f"model {envelope.model!r} is not served here; this worker serves {served}")
        return envelope, bad

    def _batched(self, envelope: Envelope, steps: Sequence[Step], derivation: Derivation) -> list[Step]:
        """Wait for the items' outcomes. What waited for a model that has a new version by now is prepared for that, and waits again."""
        steps, outdated = list(steps), list(range(len(steps)))
        while outdated:
            self.batcher.submit([entry for n in outdated if (entry := steps[n].entry)]).wait()
            outdated = [n for n in outdated if (entry := steps[n].entry) and isinstance(entry.outcome, Superseded)]
            with derivation.turn:
                for n in outdated:
                    steps[n] = self.prepare(envelope, steps[n].item, derivation)
        return steps

    def _bury(self, envelope: Envelope, malformed: Sequence[Result]) -> dict[str, Any]:
        """Fail the items of an envelope that was begun too often; the store adds why, and keeps it for a replay."""
        rows = [row for item in envelope.items for row in outcomes.ended(envelope, item, ResultState.FAILED)]
        self.writer.commit([*malformed, *rows], dead=[envelope.id], stepped=_stepped(envelope))
        return {"items": len(envelope.items), "dead": len(malformed) + len(rows)}

    def _store(self, envelope: Envelope, rows: Sequence[Result], unlisted: Collection[str] = ()) -> dict[str, Any]:
        self.writer.commit(rows, done=[envelope.id], unlisted=unlisted, stepped=_stepped(envelope))
        summary: dict[str, Any] = {"items": len(envelope.items)}
        for row in rows:
            summary[row.state.value] = summary.get(row.state.value, 0) + 1
        return summary


def _stepped(envelope: Envelope) -> Collection[str]:
    """The envelope, if its results may be followed by more."""
    return (envelope.id,) if envelope.pipeline else ()
