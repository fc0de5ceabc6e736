"""Chooses the loaded models of a device: all of them, or the needed ones within a memory budget. Pure: no clock, no
I/O.

Within a budget a model is loaded when an item waits for it, and the least recently used model makes room:

- A model without waiting items leaves first. It finishes its batches and gets no more.
- A model with waiting items stays at least as long as its loading took. Then it makes room for more urgent work. It
  makes room for equally urgent work after its *turn*, `TURN` times the loading time of both, so that loading takes at
  most a part of 1 / (1 + `TURN`) of the time; earlier only if a deadline could not be met otherwise. It makes room for
  less urgent work after its turn, once that work has *aged*.
- Suspects (`workers.batching.blame`) do not wait: nothing else runs meanwhile, and no model is loaded but that of the
  first ones, so that a death of the process is theirs.
- A model under whose loading the process ended is loaded alone the next time: nothing runs meanwhile, so that another
  death is of the loading. The first load of a version is not: the others serve on.

The footprint of a model is the size of its weights until it has been loaded once, and then the growth of the process. A
model that was never measured is loaded once at the start of the worker, so that a model that cannot be loaded, or is
too large by itself, is found then. If running batches makes the process grow over the budget, a model leaves, and the
budget counts as that much smaller from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

#: A model may keep an equally urgent one waiting for this multiple of the loading time of both.
TURN = 4.0

#: After this many seconds, less urgent work may have its model loaded in place of a busy one.
AGED_S = 10.0

#: The priority of work that is more urgent than any user's. Its arrival is its place in the order.
AT_ONCE = -1


@dataclass(frozen=True, slots=True)
class Need:
    """The items that wait for a model: most urgent priority, oldest arrival, first deadline (Unix seconds)."""

    priority: int
    arrived_at: float
    deadline_at: float | None = None

    def merged(self, other: Need) -> Need:
        return Need(min(self.priority, other.priority), min(self.arrived_at, other.arrived_at))


@dataclass(frozen=True, slots=True)
class Footprint:
    """The footprint of a model: bytes on its device, seconds to load. An estimate unless `measured`."""

    bytes: int = 0
    load_s: float = 0.0
    measured: bool = True


class State(Enum):
    ABSENT = auto()
    LOADING = auto()
    LOADED = auto()
    LEAVING = auto()  # finishes its batches, and is then unloaded
    UNLOADING = auto()


@dataclass(frozen=True, slots=True)
class Load:
    key: str


@dataclass(frozen=True, slots=True)
class Unload:
    key: str


@dataclass(slots=True)
class _Resident:
    footprint: Footprint
    state: State = State.ABSENT
    since: float = 0.0  # when the model entered this state
    used_at: float = 0.0
    asked_for: bool = False  # to be loaded although nothing waits for it
    retired: bool = False
    deaths: int = 0


@dataclass(slots=True)
class Residence:
    """Not thread-safe. `now` is seconds of a steady clock, `wall` Unix seconds. A budget of 0 means no bound: the
    process starts with all models.
    """

    budget_bytes: int = 0
    resident_bytes: int = 0
    loads: int = 0  # since the start of the process
    unloads: int = 0
    slack_bytes: int = 0  # the growth of the process beyond the footprints, seen while models ran
    _models: dict[str, _Resident] = field(default_factory=dict)
    _base_bytes: int = 0  # the size of the process without models, within a budget
    # A model that made room for another waits until the other has run, or it would return at once for its older work.
    _next: str | None = None
    _alone: str | None = None  # the model that is loaded, or about to be, while nothing runs

    # --- models ---

    def add(self, key: str, footprint: Footprint, *, asked_for: bool = False) -> None:
        """Add a model. With `asked_for` it is loaded at once, and so is a model that was never measured."""
        untried = bool(self.budget_bytes) and not footprint.measured
        self._models[key] = _Resident(footprint, asked_for=asked_for or untried)

    def retire(self, key: str) -> None:
        """Unload a model for good, once nothing runs on it."""
        self._models[key].retired = True

    def remove(self, key: str) -> None:
        self._models.pop(key, None)
        if self._next == key:
            self._next = None
        if self._alone == key:
            self._alone = None

    def footprint(self, key: str) -> Footprint:
        return self._models[key].footprint

    @property
    def measured(self) -> dict[str, Footprint]:
        """The footprints of the models that were loaded."""
        return {key: one.footprint for key, one in list(self._models.items()) if one.footprint.measured}

    @property
    def loaded(self) -> list[str]:
        """The models in memory. Safe from another thread."""
        inside = (State.LOADED, State.LEAVING, State.UNLOADING)
        return [key for key, one in list(self._models.items()) if one.state in inside]

    @property
    def held(self) -> set[str]:
        """The models in memory, or about to be."""
        return {key for key, one in self._models.items() if one.state is not State.ABSENT}

    @property
    def loading(self) -> str | None:
        return next((key for key, one in self._models.items() if one.state is State.LOADING), None)

    @property
    def settled(self) -> bool:
        """Whether all models are loaded and none is about to be loaded or unloaded."""
        return not self._is_over and all(one.state is State.LOADED and not one.retired for one in self._models.values())

    @property
    def untried(self) -> bool:
        """Whether a model has still to be loaded for the first time."""
        return any(one.asked_for for one in self._models.values())

    def at_start(self) -> list[str]:
        """The models that a new process loads before it is ready."""
        return [] if self.budget_bytes else [k for k, one in self._models.items() if not (one.asked_for or one.retired)]

    def absent(self, now: float) -> dict[str, float]:
        """Return the models on which no batch may begin, with the seconds until one can."""
        found: dict[str, float] = {}
        for key, one in self._models.items():
            if one.state is State.LOADING:
                found[key] = max(0.0, one.since + one.footprint.load_s - now)
            elif one.state is not State.LOADED:
                found[key] = one.footprint.load_s
        if self._alone is not None:
            left_s = found[self._alone]
            found |= {key: left_s for key in self._models if key not in found}
        return found

    # --- events ---

    def came_up(self, now: float, resident_bytes: int) -> None:
        """The process is ready, with the models of `at_start`."""
        self.resident_bytes = self._base_bytes = resident_bytes
        for key in self.at_start():
            self._enter(key, State.LOADED, now)

    def came(self, key: str, grown_bytes: int, load_s: float, resident_bytes: int, now: float) -> None:
        """A model is loaded. Its footprint is the last measured growth, but no less than a tenth of the estimate."""
        one = self._models[key]
        least = one.footprint.bytes // 10 if one.footprint.measured else 0
        one.footprint = Footprint(max(grown_bytes, least), load_s)
        one.asked_for = False
        one.deaths = 0
        self.resident_bytes = resident_bytes
        self.loads += 1
        self._enter(key, State.LOADED, now)

    def went(self, key: str, resident_bytes: int, now: float) -> None:
        self.resident_bytes = resident_bytes
        self.unloads += 1
        self._enter(key, State.ABSENT, now)

    def used(self, key: str, now: float) -> None:
        self._models[key].used_at = now

    def failed(self, key: str, now: float) -> None:
        """A model cannot be loaded."""
        self._models[key].asked_for = False
        self._enter(key, State.ABSENT, now)

    def lost(self, now: float) -> tuple[str, int] | None:
        """The process ended: nothing is loaded. Return the model that was loading, and how many times the process ended
        under it.
        """
        loading = self.loading
        for key in self._models:
            self._enter(key, State.ABSENT, now)
        if loading is None:
            return None
        self._models[loading].deaths += 1
        return loading, self._models[loading].deaths

    def too_large(self) -> str | None:
        """Return a model that exceeds the budget by itself, as far as is known, if there is one."""
        if not self.budget_bytes:
            return None
        return next((key for key, one in self._models.items() if self.alone_bytes(key) > self.budget_bytes), None)

    def alone_bytes(self, key: str) -> int:
        """Return the size of the process with this model alone, as far as is known."""
        return self._base_bytes + self._models[key].footprint.bytes

    def is_asked_for(self, key: str) -> bool:
        """Whether a model is loaded to be measured, or for the first time of its version."""
        return self._models[key].asked_for

    # --- decisions ---

    def next(self, needs: Mapping[str, Need], busy: Collection[str], now: float, wall: float) -> Load | Unload | None:
        """Return the next action, which counts as begun. `busy` are the models with running batches."""
        states = {one.state for one in self._models.values()}
        if State.LOADING in states or State.UNLOADING in states:
            return None
        self._alone = None
        self._send_off(needs, busy, now)
        leaving = [key for key, one in self._models.items() if one.state is State.LEAVING]
        if leaving:
            return self._leave(next((key for key in leaving if key not in busy), None), busy, now)
        target = None if self._is_over else self._target(needs, busy)
        if target is not None and self._fits(target):
            if self._models[target].deaths and not self._models[target].asked_for:
                self._alone = target
                if busy:
                    return None
            self._enter(target, State.LOADING, now)
            return Load(target)
        if target is None:
            return self._leave(self._surplus(needs, now), busy, now)
        victim = self._victim(target, needs, now, wall)
        self._next = target if victim else None
        return self._leave(victim, busy, now)

    @property
    def _is_over(self) -> bool:
        """Whether the process exceeds the budget although a model could leave."""
        return 0 < self.budget_bytes < self.resident_bytes and len(self.loaded) > 1

    def _send_off(self, needs: Mapping[str, Need], busy: Collection[str], now: float) -> None:
        for key, one in self._models.items():
            if one.retired and one.state is State.LOADED and key not in needs and key not in busy:
                self._enter(key, State.LEAVING, now)

    def _target(self, needs: Mapping[str, Need], busy: Collection[str]) -> str | None:
        """Return the model to load: a suspect's, then one asked for, then the most urgently and longest needed."""
        suspected = [(need.arrived_at, key) for key, need in needs.items() if need.priority == AT_ONCE]
        if suspected:
            _, first = min(suspected)
            return first if self._models[first].state is State.ABSENT and not busy else None
        ranks = []
        if self._next is not None and self._next in needs and self._models[self._next].state is State.ABSENT:
            return self._next
        for key, one in self._models.items():
            if one.state is not State.ABSENT:
                continue
            need = needs.get(key)
            if need is not None:
                ranks.append((0 if one.asked_for else need.priority, need.arrived_at, key))
            elif one.asked_for:
                ranks.append((0, 0.0, key))
        return min(ranks)[2] if ranks else None

    def _fits(self, key: str) -> bool:
        return (
            not self.budget_bytes
            or self.resident_bytes + self.slack_bytes + self._models[key].footprint.bytes <= self.budget_bytes
            or not self.loaded
        )

    def _victim(self, target: str, needs: Mapping[str, Need], now: float, wall: float) -> str | None:
        """Return the least recently used model that may leave for `target`, preferably one without waiting items."""
        by_use = self._by_use()
        idle = [key for key in by_use if key not in needs]
        may_go = (key for key in by_use if self._may_go(key, target, needs, now, wall))
        return idle[0] if idle else next(may_go, None)

    def _may_go(self, key: str, target: str, needs: Mapping[str, Need], now: float, wall: float) -> bool:
        one, other, need = self._models[key], self._models[target], needs.get(target)
        if need is not None and need.priority == AT_ONCE:
            return True
        stayed_s = now - one.since
        if stayed_s < one.footprint.load_s:
            return False
        if need is None or other.asked_for or need.priority < needs[key].priority:
            return True
        left_s = TURN * (one.footprint.load_s + other.footprint.load_s) - stayed_s
        if need.priority > needs[key].priority:
            return left_s <= 0 and wall - need.arrived_at >= AGED_S
        presses = need.deadline_at is not None and need.deadline_at < wall + left_s + 2 * other.footprint.load_s
        return left_s <= 0 or presses

    def _surplus(self, needs: Mapping[str, Need], now: float) -> str | None:
        """Return a model to unload because running batches made the process exceed the budget."""
        if not self._is_over:
            return None
        # without this, the model would be loaded again soon
        thought = self._base_bytes + sum(self._models[key].footprint.bytes for key in self.loaded)
        self.slack_bytes = max(self.slack_bytes, self.resident_bytes - thought)
        by_use = self._by_use()
        idle = (key for key in by_use if key not in needs)
        stayed = (key for key in by_use if now - self._models[key].since >= self._models[key].footprint.load_s)
        return next(idle, None) or next(stayed, None)

    def _by_use(self) -> list[str]:
        loaded = [(one.used_at, key) for key, one in self._models.items() if one.state is State.LOADED]
        return [key for _, key in sorted(loaded)]

    def _leave(self, key: str | None, busy: Collection[str], now: float) -> Unload | None:
        if key is None:
            return None
        self._enter(key, State.LEAVING if key in busy else State.UNLOADING, now)
        return None if key in busy else Unload(key)

    def _enter(self, key: str, state: State, now: float) -> None:
        one = self._models[key]
        one.state, one.since = state, now
        if self._alone == key and state is not State.LOADING:
            self._alone = None
