"""The trainings of a node: an envelope of a training, from its claim to its result.

A training stands still as soon as the node has other work, and goes on when that is done. If the other work does not
end, the training writes a checkpoint and its envelope goes back to its queue, uncounted: any node with a right to the
recipe's folder goes on from there, as it does after the death of a node (docs/decisions/0052-submitted-trainings.md).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

import msgspec

from producers.wire.errors import BrokerUnavailable, ConfigurationError, InvalidInput, InvalidMessage, Overloaded
from producers.wire.messages import BadItem, Envelope, Item, Named, PathInput, outline, stored_envelope
from producers.wire.outside.allowed_places import AllowedPlaces
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.training.training_job import (
    TRAINING,
    TrainerReport,
    TrainingParams,
    TrainingProgress,
    tell_progress,
)
from results_store.errors import StoreError
from results_store.loops.loop import doing
from results_store.records import Claim, Claimed, Result, ResultState, Transaction
from results_store.store import Store
from results_store.writer import Writer
from workers.device.devices import Device, pinned_environment
from workers.envelope import outcomes
from workers.envelope.gate import EnvelopeInterrupted
from workers.envelope.portions import Portion, portions
from workers.node.held_envelopes import HeldEnvelope, HeldEnvelopes
from workers.node.training.interruptions import Interruptions
from workers.node.training.trainer_process import TrainerProcess

logger = logging.getLogger(__name__)

#: Seconds between looks at the node's other work while a training runs, and at the store for a cancellation.
TURN_S, CANCELLED_EVERY_S = 0.05, 1.0

#: The least seconds between two notes of the progress in Redis.
TELL_EVERY_S = 1.0


class TrainerDied(Exception):
    """A trainer ended without a word. The attempt counts, and the next one goes on from the last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTimes:
    """Times of a node's trainings, in seconds.

    A node takes a training if it had nothing to do for `idle_s`. A training that stands still goes on after `gap_s`
    without other work, and is pre-empted after `patience_s` of it. It has `stop_s` for its checkpoint. A trainer that
    tells nothing for `silent_s`, neither a step nor another part of its work, counts as hung.
    """

    idle_s: float = 2.0
    gap_s: float = 0.5
    patience_s: float = 10.0
    stop_s: float = 30.0
    silent_s: float = 3600.0


@dataclass(slots=True, kw_only=True)
class Trainings:
    """Runs a training at a time. `may_take` belongs to the consumer's thread; `run` and `stop` are thread-safe.

    `folders` are those whose recipes this node trains. `paused` returns the subjects that operators have paused.
    """

    node: str
    folders: Sequence[str]
    device: Device
    threads: int
    held: HeldEnvelopes
    writer: Writer
    store: Store
    publisher: Publisher
    paused: Callable[[], Collection[str]]
    times: TrainingTimes = field(default_factory=TrainingTimes)
    _stopping: Event = field(default_factory=Event)
    _busy_at: float = 0.0
    _interruptions: Interruptions = field(default_factory=Interruptions)
    _running: Lock = field(default_factory=Lock)

    def may_take(self, holds: bool) -> bool:
        """Return whether the node has had nothing to do for a while. `holds` says that its consumer has a message."""
        now = time.monotonic()
        if holds or self.held.now():
            self._busy_at = now
        return now - self._busy_at >= self.times.idle_s and not self._stopping.is_set()

    def stop(self) -> None:
        """Let the running training write its checkpoint and go back to its queue."""
        self._stopping.set()

    def run(self, message: Named, held: HeldEnvelope) -> dict[str, Any]:
        """Run the envelope of a training, and return a summary once its results are committed.

        Raises InvalidMessage, TrainerDied, or EnvelopeInterrupted if the training goes back to its queue, as it does if
        another one runs here.
        """
        held.model, held.priority = TRAINING, message.priority
        if not message.durable:
            raise InvalidMessage("a training needs a row in the store; submit it with `argosy train RECIPE --submit`")
        if not self._running.acquire(blocking=False):
            raise EnvelopeInterrupted(f"envelope {message.id}: its node trains already; it returns to its queue")
        try:
            return self._run(message)
        finally:
            self._running.release()

    def _run(self, message: Named) -> dict[str, Any]:
        claimed = self.writer.claim(message.id)
        if claimed.verdict in (Claim.DONE, Claim.HELD, Claim.WAITING):
            return {"skipped": claimed.verdict.value}
        results: list[Result] = []
        for portion in self._portions(message, claimed):
            portion.results.extend(self._trained(portion.envelope))
            dead = claimed.verdict is Claim.DEAD
            ended = (message.id,) if portion.last else ()
            self.writer.commit(
                Transaction(results=portion.results, done=() if dead else ended, dead=ended if dead else ())
            )
            results += portion.results
        return {"items": 1, **{state.value: 1 for state in {row.state for row in results}}}

    def _portions(self, message: Named, claimed: Claimed) -> Iterable[Portion]:
        if claimed.verdict in (Claim.CANCELLED, Claim.DEAD):
            named = outline(message.id, claimed.payload, claimed.content_type)
            nothing = msgspec.structs.replace(named, items=())
            return (Portion(nothing, outcomes.given_up(named, claimed.verdict)),)
        if claimed.payload is None:
            raise InvalidMessage(f"envelope {message.id} is not in the store, or its inputs are gone; submit it again")
        bad: list[BadItem]
        envelope, bad = stored_envelope(claimed.payload, claimed.content_type)
        if envelope.model != TRAINING:  # an altered message: the next one names the envelope's own model
            raise InvalidMessage(f"envelope {message.id} is no training")
        refused = [*outcomes.malformed(envelope, bad)]
        return portions(envelope, claimed, refused, self.store) if claimed.alone else (Portion(envelope, refused),)

    def _trained(self, envelope: Envelope) -> list[Result]:
        return [self._result(envelope, item, task) for item in envelope.items for task in item.tasks]

    def _result(self, envelope: Envelope, item: Item, task: str) -> Result:
        try:
            arguments = self._arguments(item, task)
        except InvalidInput as error:
            return outcomes.result(envelope, item, task, ResultState.FAILED, outcomes.described(error))
        environment = pinned_environment(self.device, os.environ, threads=self.threads)
        with (
            closing(TrainerProcess(arguments, environment)) as trainer,
            doing("a training, told by its steps", float("inf")),
        ):
            told = _Training(self, envelope, trainer.start(), self._interruptions).end()
        self._interruptions.forget(envelope.id)
        if told is None:
            return outcomes.result(envelope, item, task, ResultState.CANCELLED)
        if told.error is not None:
            return outcomes.result(envelope, item, task, ResultState.FAILED, dict(told.error))
        return outcomes.result(envelope, item, task, ResultState.SUCCEEDED, output=told.output)

    def _arguments(self, item: Item, task: str) -> list[str]:
        """Return a trainer's arguments. Raises InvalidInput for a recipe that this node may not or cannot read."""
        if not isinstance(item.input, PathInput) or task != TRAINING:
            raise InvalidInput("input", "is no path of a recipe", "submit it with `argosy train RECIPE --submit`")
        try:
            params = msgspec.convert(item.params.get(task, {}), TrainingParams)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"params.{task}", str(error)) from error
        recipe, allowed = Path(item.input.path), AllowedPlaces(tuple(self.folders))
        if not allowed.holds(recipe) or not recipe.is_file():
            there = ", ".join(allowed.resolved)
            remedy = f"{self.node} trains recipes in {there} (worker.trainings); all nodes with it must read one folder"
            raise InvalidInput("input", f"{recipe} is not a recipe that this node may read", remedy)
        device = "cuda" if self.device.is_cuda else "cpu"
        return [str(recipe), params.sha256, device, *(["--compare"] if params.compare else [])]

    def is_busy(self) -> bool:
        """Return whether the node has other work than trainings."""
        return any(held.model != TRAINING for held in self.held.now())

    def interruption(self, envelope: Envelope) -> str:
        """Return why a training must go back to its queue at once, or nothing."""
        if self._stopping.is_set():
            return "its node stops"
        subjects = self.paused()
        if f"model:{TRAINING}" in subjects or f"tenant:{envelope.tenant}" in subjects:
            return "an operator has paused it"
        return ""

    def is_cancelled(self, job: str) -> bool:
        with suppress(StoreError):  # it is asked again
            return bool(self.store.cancelled_among([job]))
        return False

    def tell(self, job: str, report: TrainerReport, waits: str) -> None:
        """Note the progress for `argosy status`. The next note makes up for a lost one."""
        redis = self.publisher.redis
        with suppress(BrokerUnavailable, Overloaded, ConfigurationError), as_unavailable(redis):
            tell_progress(redis, job, TrainingProgress(node=self.node, report=report, waits=waits))


class _Training:
    """The hours of a training: `end` returns its last report, or None if its job was cancelled."""

    def __init__(
        self, node: Trainings, envelope: Envelope, trainer: TrainerProcess, interruptions: Interruptions
    ) -> None:
        self._node, self._times = node, node.times
        self._envelope, self._trainer = envelope, trainer
        self._interruptions, self._stays = interruptions, False
        self._folder = ""
        self._report = TrainerReport(doing="starts")
        now = time.monotonic()
        self._heard_at = self._quiet_at = self._paused_at = self._asked_at = now
        self._told: tuple[float, TrainerReport, str] = (0.0, self._report, "")

    def end(self) -> TrainerReport | None:
        """Follow the trainer to its end. Raises EnvelopeInterrupted or TrainerDied."""
        node, job = self._node, self._envelope.job
        while self._hear(TURN_S):
            now = time.monotonic()
            if reason := node.interruption(self._envelope) or self._yields(now):
                return self._interrupted(reason)
            if now - self._asked_at >= CANCELLED_EVERY_S:
                self._asked_at = now
                if node.is_cancelled(job):
                    self._stop()
                    return None
            if not self._trainer.is_paused and now - self._heard_at > self._times.silent_s:
                raise TrainerDied(f"the trainer told nothing for {self._times.silent_s:g} s")
            self._tell(now, "stands still for other work" if self._trainer.is_paused else "")
        return self._over()

    def _hear(self, timeout_s: float) -> bool:
        """Take reports as they come; return whether the trainer goes on."""
        reports = self._trainer.reports(timeout_s)
        if reports:
            self._report, self._heard_at = reports[-1], time.monotonic()
            self._folder = next((report.folder for report in reports if report.folder), self._folder)
        return reports is not None

    def _yields(self, now: float) -> str:
        """Let the trainer stand still beside other work; return a reason once that has taken too long.

        If the training was interrupted in vain before, it stands still until the other work ends, and keeps its memory.
        """
        if self._node.is_busy():
            self._quiet_at = now
            if not self._trainer.is_paused:
                self._trainer.pause()
                self._paused_at = now
                self._stays = self._interruptions.are_in_vain(self._envelope.id, self._folder)
        elif self._trainer.is_paused and now - self._quiet_at >= self._times.gap_s:
            self._trainer.go_on()
            self._heard_at = now
        waits = self._trainer.is_paused and now - self._paused_at >= self._times.patience_s
        return "it waits for other work to end" if waits and not self._stays else ""

    def _interrupted(self, reason: str) -> TrainerReport:
        self._stop()
        if self._is_end(self._report):  # it ended meanwhile
            return self._report
        self._interruptions.note(self._envelope.id, self._folder)
        self._tell(0.0, f"was interrupted: {reason}")
        envelope = self._envelope
        logger.info(
            "the training of job %s goes back to its queue: %s", envelope.job, reason, extra={"job": envelope.job}
        )
        raise EnvelopeInterrupted(f"envelope {envelope.id}: {reason}; the training returns to its queue")

    def _stop(self) -> None:
        """Ask the trainer to stop, and wait for its end as long as it may take."""
        self._trainer.ask_to_stop()
        ends_at = time.monotonic() + self._times.stop_s
        while (left_s := ends_at - time.monotonic()) > 0 and self._hear(left_s):
            pass

    def _over(self) -> TrainerReport:
        if self._is_end(self._report):
            return self._report
        code = self._trainer.wait()
        raise TrainerDied(f"the trainer ended with code {code}, after: {self._report.doing or self._report.step}")

    @staticmethod
    def _is_end(report: TrainerReport) -> bool:
        return report.output is not None or report.error is not None

    def _tell(self, now: float, waits: str) -> None:
        at, report, before = self._told
        if waits != before or (report is not self._report and now - at >= TELL_EVERY_S):
            self._told = (now, self._report, waits)
            self._node.tell(self._envelope.job, self._report, waits)
