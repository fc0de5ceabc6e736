"""The entries that wait in the batcher, and their outcomes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from producers.wire.tracing import spans
from workers.batching.planning.waiting_pool import Waiting
from workers.models.interface.model import Array, Prepared


@dataclass(frozen=True, slots=True)
class Computed:
    """The heads' outputs for an item, by task; its batch; when the batch was formed and done (Unix seconds)."""

    outputs: Mapping[str, Array]
    batch: str
    batched_at: float
    computed_at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The item alone was at fault, or with LoadingFailed the model. `kind` is one of LoadingFailed, ModelError,
    WrongOutput, OutOfMemory, DeviceLost, DeviceHung.
    """

    kind: str
    message: str
    traceback: str = ""
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline passed while the item waited."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job was cancelled while the item waited."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker stops, or its device is out of service: the item was not computed here and returns to the queue."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The model has a newer version than the item was prepared for: it is prepared again and waits again."""


@dataclass(frozen=True, slots=True)
class TakenApart:
    """A part of a block was not computed, whatever the reason: its items are prepared, and wait, one by one."""


Outcome: TypeAlias = Computed | Failed | Expired | Cancelled | Interrupted | Superseded | TakenApart


class Group:
    """The entries of an envelope. Only the batcher's thread counts down; the envelope's thread waits.

    `trace` is the context of the thread's span that made it.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.trace = spans.current()
        self.entries = list(entries)
        self._left = len(entries)
        self._done = threading.Event()
        if not entries:
            self._done.set()
        for entry in entries:
            entry.group = self

    def wait(self) -> None:
        """Block until every entry has its outcome."""
        self._done.wait()

    def join(self, entry: Entry) -> None:
        """Add an entry, a part of an entry that waits."""
        self._left += 1
        self.entries.append(entry)
        entry.group = self

    def count_down(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    def interrupt(self) -> None:
        """Give every entry without an outcome the outcome Interrupted, and end the wait, whatever was counted."""
        for entry in self.entries:
            entry.outcome = entry.outcome or Interrupted()
        self._done.set()


class Entry:
    """A prepared item of a job (`seq` is its number there), waiting for its micro-batch; `finish` sets `outcome`,
    once.
    """

    __slots__ = ("deaths", "group", "job", "on_text", "outcome", "prepared", "seq", "tasks", "waiting")

    def __init__(
        self, prepared: Prepared, tasks: tuple[str, ...], waiting: Waiting, *, job: str = "", seq: int = 0
    ) -> None:
        self.job = job
        self.seq = seq
        self.prepared = prepared
        self.tasks = tasks
        self.waiting = waiting
        self.deaths = 0  # how many times the device process died while this item was alone in it
        self.group: Group | None = None
        self.outcome: Outcome | None = None
        self.on_text: Callable[[int, str], object] | None = (
            None  # called with each piece of text: its first character's place, and the piece
        )

    def finish(self, outcome: Outcome) -> None:
        if isinstance(self.outcome, Interrupted):  # its group was given back while it was at the device
            return
        assert self.outcome is None, "an entry ends once"
        self.outcome = outcome
        if self.group:
            self.group.count_down()
