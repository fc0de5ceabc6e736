"""Which of a device's models are loaded: all of them, or within a memory budget those that are needed. Pure: no clock, no I/O.

Within a budget a model is loaded when something waits for it, and the least recently used one makes room:

- A model for which nothing waits goes first. It ends the batches that it has, and gets no more.
- One for which something waits stays at least as long as its loading took. Then it goes for what is more urgent. For what is as
  urgent it goes after its *turn*, `TURN` times what loading the two takes, so that at most a part of 1 / (1 + `TURN`) of the time is
  spent on loading; sooner only if a deadline could not be met otherwise. For what is less urgent it goes after its turn, once
  that has *aged*.
- What is under suspicion (`workers.batching.blame`) waits for nobody: meanwhile nothing else runs.

What a model takes is its weights' size until it has been loaded once, and from then on how much the process grew by it. A model that was
never measured is loaded once when the worker starts, so that one that cannot be loaded, or is too large by itself, is found then.
Where the process grows over the budget by the batches that it runs, a model goes, and from then on there is that much less room.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

#: For how long a model may keep one that is as urgent waiting, in times of what loading both takes.
TURN = 4.0

#: Seconds after which less urgent work may have its model loaded in place of a busy one.
AGED_S = 10.0

#: The priority of what is more urgent than anything a user can ask for.
AT_ONCE = -1


@dataclass(frozen=True, slots=True)
class Need:
    """What waits for a model: its most urgent priority, its oldest arrival, its first deadline (Unix seconds)."""

    priority: int
    arrived_at: float
    deadline_at: float | None = None

    def merged(self, other: Need) -> Need:
        return Need(min(self.priority, other.priority), min(self.arrived_at, other.arrived_at))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes: bytes of its device's memory, seconds to load. Not `measured`, it is an estimate."""

    bytes: int = 0
    load_s: float = 0.0
    measured: bool = True


class State(Enum):
    ABSENT = auto()
    LOADING = auto()
    LOADED = auto()
    LEAVING = auto()  # it ends the batches that it has, and is then unloaded
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
    since: float = 0.0  # when it came into this state
    used_at: float = 0.0
    asked_for: bool = False  # to be loaded though nothing waits for it
    retired: bool = False
    deaths: int = 0


@dataclass(slots=True)
class Residence:
    """Not thread-safe. `now` is seconds of a steady clock, `wall` Unix seconds. A budget of 0 bounds nothing: all models are loaded
    with the process.
    """

    budget_bytes: int = 0
    resident_bytes: int = 0
    loads: int = 0  # since the start of the process
    unloads: int = 0
    slack_bytes: int = 0  # how much more than thought the models were seen to take once they ran
    _models: dict[str, _Resident] = field(default_factory=dict)
    _base_bytes: int = 0  # what the process takes without models, within a budget
    # For which another made room: it comes first, or the other, whose work may be older, would come back at once.
    _next: str | None = None

    # --- what there is ---

    def add(self, key: str, footprint: Footprint, *, asked_for: bool = False) -> None:
        """Know one more model; `asked_for`, it is loaded at once. One that was never measured is."""
        untried = bool(self.budget_bytes) and not footprint.measured
        self._models[key] = _Resident(footprint, asked_for=asked_for or untried)

    def retire(self, key: str) -> None:
        """Have a model unloaded for good, once nothing runs on it."""
        self._models[key].retired = True

    def remove(self, key: str) -> None:
        self._models.pop(key, None)
        if self._next == key:
            self._next = None

    def footprint(self, key: str) -> Footprint:
        return self._models[key].footprint

    @property
    def measured(self) -> dict[str, Footprint]:
        """What is known of the models that were loaded."""
        return {key: one.footprint for key, one in list(self._models.items()) if one.footprint.measured}

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory. May be asked from another thread."""
        inside = (State.LOADED, State.LEAVING, State.UNLOADING)
        return [key for key, one in list(self._models.items()) if one.state in inside]

    @property
    def held(self) -> set[str]:
        """The models that are in memory, or will be in a moment."""
        return {key for key, one in self._models.items() if one.state is not State.ABSENT}

    @property
    def loading(self) -> str | None:
        return next((key for key, one in self._models.items() if one.state is State.LOADING), None)

    @property
    def settled(self) -> bool:
        """Whether all models are loaded and none is to come or to go."""
        return not self._is_over and all(one.state is State.LOADED and not one.retired for one in self._models.values())

    @property
    def untried(self) -> bool:
        """Whether a model is still to be loaded for the first time."""
        return any(one.asked_for for one in self._models.values())

    def at_start(self) -> list[str]:
        """The models that a starting process loads before it is ready."""
        return [] if self.budget_bytes else [k for k, one in self._models.items() if not (one.asked_for or one.retired)]

    def absent(self, now: float) -> dict[str, float]:
        """Return the models on which no batch may begin, with the seconds until one can."""
        found: dict[str, float] = {}
        for key, one in self._models.items():
            if one.state is State.LOADING:
                found[key] = max(0.0, one.since + one.footprint.load_s - now)
            elif one.state is not State.LOADED:
                found[key] = one.footprint.load_s
        return found

    # --- what happens ---

    def came_up(self, now: float, resident_bytes: int) -> None:
        """The process is ready, with the models of `at_start`."""
        self.resident_bytes = self._base_bytes = resident_bytes
        for key in self.at_start():
            self._enter(key, State.LOADED, now)

    def came(self, key: str, grown_bytes: int, load_s: float, resident_bytes: int, now: float) -> None:
        """A model is loaded. What it takes is what was seen to be taken last, but no less than a tenth of what was thought."""
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
        """The process is no more: nothing is loaded. Return the model that was being loaded, and how often that has happened to it."""
        loading = self.loading
        for key in self._models:
            self._enter(key, State.ABSENT, now)
        if loading is None:
            return None
        self._models[loading].deaths += 1
        return loading, self._models[loading].deaths

    def too_large(self) -> str | None:
        """Return a model that does not fit into the budget by itself, as far as is known, if there is one."""
        if not self.budget_bytes:
            return None
        return next((key for key, one in self._models.items() if self.alone_bytes(key) > self.budget_bytes), None)

    def alone_bytes(self, key: str) -> int:
        """Return what the process takes with this model alone, as far as is known."""
        return self._base_bytes + self._models[key].footprint.bytes

    def is_asked_for(self, key: str) -> bool:
        """Whether a model is loaded to see what it takes, or for its version's first time."""
        return self._models[key].asked_for

    # --- what to do ---

    def next(self, needs: Mapping[str, Need], busy: Collection[str], now: float, wall: float) -> Load | Unload | None:
        """Return what is to be done now, which is then under way. `busy` are the models on which anything runs."""
        states = {one.state for one in self._models.values()}
        if State.LOADING in states or State.UNLOADING in states:
            return None
        self._send_off(needs, busy, now)
        leaving = [key for key, one in self._models.items() if one.state is State.LEAVING]
        if leaving:
            return self._leave(next((key for key in leaving if key not in busy), None), busy, now)
        target = None if self._is_over else self._target(needs)
        if target is not None and self._fits(target):
            self._enter(target, State.LOADING, now)
            return Load(target)
        if target is None:
            return self._leave(self._surplus(needs, now), busy, now)
        victim = self._victim(target, needs, now, wall)
        self._next = target if victim else None
        return self._leave(victim, busy, now)

    @property
    def _is_over(self) -> bool:
        """Whether the process has grown over the budget though another model could go."""
        return 0 < self.budget_bytes < self.resident_bytes and len(self.loaded) > 1

    def _send_off(self, needs: Mapping[str, Need], busy: Collection[str], now: float) -> None:
        for key, one in self._models.items():
            if one.retired and one.state is State.LOADED and key not in needs and key not in busy:
                self._enter(key, State.LEAVING, now)

    def _target(self, needs: Mapping[str, Need]) -> str | None:
        """Return the model to load: what is under suspicion, then what was asked for, then what is needed most urgently and longest."""
        ranks = []
        if self._next is not None and self._next in needs and self._models[self._next].state is State.ABSENT:
            return self._next
        for key, one in self._models.items():
            if one.state is not State.ABSENT:
                continue
            need = needs.get(key)
            if need is not None:
                ranks.append(
                    (need.priority if need.priority == AT_ONCE or not one.asked_for else 0, need.arrived_at, key)
                )
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
        """Return the least recently used of the models that may go for `target`: one that nothing waits for, if there is any."""
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
        """Return a model that goes because the process has grown over the budget, as it does by the batches that it runs."""
        if not self._is_over:
            return None
        # else it would soon be loaded again
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
