"""What a node takes from the queues beside other nodes, and what it gives back (docs/decisions/0046-shared-work.md).

Alone, a node takes as many envelopes as it has slots. Beside peers that serve the same model it holds about a second of
predicted work, and at least two envelopes of a list. A node that is slow beside a peer, or whose device is stalled,
takes only what it ends sooner: the newest envelopes of a long list. Whatever it holds, a node takes urgent envelopes; a
slow node only those that its peers leave lying.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from producers.wire.messages import Priority
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import model_of, redis_key
from producers.wire.training.training_job import TRAINING
from workers.batching.batcher import Batcher
from workers.batching.planning.work_seconds import Amount, WorkRate
from workers.batching.planning.work_sharing import HOLD_S, LEAST_HELD, is_slow, takes, to_give_back
from workers.node.held_envelopes import HeldEnvelope, HeldEnvelopes
from workers.node.peers import ModelWork, Peers

#: A Redis list: its queue and its priority.
Listed = tuple[str, int]

#: After giving envelopes back a node takes none for so long, in which its peers take them.
COOL_S = 0.3

#: A device whose batch takes so much longer than predicted may have stalled.
OVERDUE_S = 0.25

#: An envelope is given back so many times at most, so that it is computed somewhere.
MOST_RETURNS = 3

#: A slow node takes an urgent envelope that its peers have left lying for so long; others, and any if its device is
#: overdue, of a list that has become no shorter for so long.
URGENT_LEFT_S = 0.05
LEFT_S = 5.0


#: An envelope in columns takes at most so many seconds of a node's work: it can be given back, but not divided.
COLUMNS_S = 0.5

#: The most texts of an envelope in columns until a node knows its costs, as after its first batches.
UNKNOWN_IN_COLUMNS = 256

#: A text of bulk, until a node has seen some: its tokens, and two tasks.
_TEXT = Amount(64.0, 1.0, 2.0)


class ChosenLists(NamedTuple):
    """The lists to take from. With `newest`, from their ends; `all` says that no list was left out.

    `several` allows to take several urgent messages at once. The lists of `last` come behind all others, however
    urgent they are.
    """

    lists: Sequence[Listed]
    newest: bool = False
    all: bool = True
    several: bool = True
    last: Sequence[Listed] = ()


class Lists(Protocol):
    """The Redis lists of a consumer."""

    def held(self) -> Counter[Listed]:
        """Return the number of unacknowledged messages by list. Thread-safe."""
        ...

    def lengths(self, lists: Sequence[Listed]) -> list[int]:
        """Ask Redis for the lengths of lists."""
        ...


class Intake(Protocol):
    """Decides from which lists a node takes."""

    def choose(self, lists: Sequence[Listed], of: Lists) -> ChosenLists:
        """Return the lists to take the next envelope from."""
        ...


class Unbounded:
    """Takes from all lists."""

    def choose(self, lists: Sequence[Listed], of: Lists) -> ChosenLists:
        """Return all lists."""
        return ChosenLists(lists)


class SharedIntake:
    """The intake of a node that may have peers. `choose` is called by the consumer, `share` by a periodic duty."""

    def __init__(
        self,
        held: HeldEnvelopes,
        batcher: Batcher,
        peers: Peers,
        publisher: Publisher,
        models: Sequence[str],
        lanes: Callable[[], Sequence[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = held
        self._batcher = batcher
        self._peers = peers
        self._publisher = publisher
        self._models = models
        self._lanes = lanes
        self._clock = clock
        self._cool_until = 0.0
        self._lying: dict[Listed, tuple[float, int]] = {}  # lists that are left to peers: since when, and their length
        self._lists: Lists | None = None  # of the last choice
        self._turn = 0

    # --- what it takes ---

    def choose(self, lists: Sequence[Listed], of: Lists) -> ChosenLists:
        """Return the lists to take the next envelope from."""
        self._lists = of
        if not self._peers.living():
            self._lying.clear()
            return ChosenLists(lists)
        shared = {model for model in {model_of(queue) for queue, _ in lists} if self._peers.serve(model)}
        own, held = self._seconds(), of.held()
        stalled = self._batcher.busy_s()[1] > OVERDUE_S
        slow = {model for model in shared if stalled or self._is_slow(model)}
        usual, left = [], []
        for queue, priority in lists:
            model = model_of(queue)
            if model in slow:
                left.append((queue, priority))
            elif model not in shared or self._may_take(model, priority, held.get((queue, priority), 0), own):
                usual.append((queue, priority))
        self._turn += 1
        newest, urgent = self._left_to_peers(left, own, of.lengths(left) if left else [], stalled)
        usual += urgent
        if newest and (not usual or self._turn % 2):
            return ChosenLists(newest, newest=True, all=False, several=False)
        return ChosenLists(usual, all=len(usual) == len(lists), several=not urgent)

    def _may_take(self, model: str, priority: int, held: int, own: Mapping[int, float]) -> bool:
        if priority == Priority.INTERACTIVE:
            return True
        if self._clock() < self._cool_until:
            return False
        if held < LEAST_HELD or model in self._with_room():
            return True
        return _until(own, priority) < HOLD_S

    def _with_room(self) -> set[str]:
        return {key.partition("#")[0] for key in self._batcher.with_room()}

    def _is_slow(self, model: str) -> bool:
        rate, envelope = self._batcher.rates.get(model), self._usual(model)
        if rate is None or envelope is None:
            return False
        return is_slow(rate.seconds(envelope), self._peers.of(model, envelope, rate))

    def _usual(self, model: str) -> Amount | None:
        return self._held.usual.get(model) or self._peers.usual(model)

    def _left_to_peers(
        self, lists: Sequence[Listed], own: Mapping[int, float], lengths: Sequence[int], stalled: bool
    ) -> tuple[list[Listed], list[Listed]]:
        """Return the lists whose newest envelopes this slow node ends sooner, and the lists that peers leave lying."""
        newest, lying = [], []
        now, ahead_s = self._clock(), _until(own, max(own, default=0))
        self._lying = {listed: known for listed, known in self._lying.items() if listed in lists}
        for (queue, priority), length in zip(lists, lengths, strict=True):
            since = self._lying_since((queue, priority), length, now)
            urgent = priority == Priority.INTERACTIVE
            if now - since >= (URGENT_LEFT_S if urgent and not stalled else LEFT_S):
                lying.append((queue, priority))
            elif not urgent and now >= self._cool_until and self._ends_sooner(model_of(queue), ahead_s, length):
                newest.append((queue, priority))
        return newest, lying

    def _ends_sooner(self, model: str, ahead_s: float, length: int) -> bool:
        """Return whether this node ends the newest envelope of a list before its peers would."""
        rate, envelope = self._batcher.rates.get(model), self._usual(model)
        if rate is None or envelope is None:
            return False
        return takes(ahead_s, rate.seconds(envelope), self._peers.of(model, envelope, rate), length)

    def _lying_since(self, listed: Listed, length: int, now: float) -> float:
        """Return the time since which a list has messages and has become no shorter."""
        since, before = self._lying.get(listed, (now, 0))
        if not before or length < before:
            since = now
        self._lying[listed] = (since, length)
        return since

    # --- its seconds ---

    def _seconds(self) -> dict[int, float]:
        """Return the predicted seconds of the work in hand by priority; infinite where the costs are not known."""
        rates, held = self._batcher.rates, self._held.now()
        found: defaultdict[int, float] = defaultdict(float)
        for key, priority, amount in self._batcher.amounts():
            if amount.rows:
                found[priority] += _seconds(rates.get(key.partition("#")[0]), amount)
        found[0] += self._batcher.busy_s()[0]
        begun = Counter((one.model, one.priority) for one in held if one.group is not None)
        for (queue, priority), count in (self._lists.held() if self._lists else {}).items():
            model = model_of(queue)
            if model == TRAINING:  # it is no work of the device, and stands still beside such work
                continue
            coming = count - begun[model, priority]
            begun[model, priority] -= min(count, begun[model, priority])
            if coming > 0 and priority != Priority.INTERACTIVE:
                found[priority] += coming * _seconds(rates.get(model), self._usual(model))
        return dict(found)

    def in_columns(self, model: str) -> int:
        """Return the most texts of an envelope in columns, so that it takes this node at most `COLUMNS_S`."""
        rate, usual = self._batcher.rates.get(model), self._held.usual.get(model, _TEXT)
        if rate is None or not usual.rows:
            return UNKNOWN_IN_COLUMNS
        text_s = rate.seconds(usual) / usual.rows
        return max(1, int(COLUMNS_S / max(text_s, 1e-6)))

    # --- what it gives back ---

    def share(self) -> int:
        """Announce the work in hand, hear of the peers, and give envelopes back that they end sooner.

        Returns the number of envelopes. Raises BrokerUnavailable or Overloaded.
        """
        own = self._seconds()
        ahead_s = _until(own, max(own, default=0))
        rates = self._batcher.rates
        works = {model: ModelWork(rate=rates.get(model), usual=self._held.usual.get(model)) for model in self._models}
        self._peers.exchange(min(ahead_s, 1e9), works)
        if not self._peers.living():
            return 0
        overdue = self._batcher.busy_s()[1] > OVERDUE_S
        return sum(self._give_back(*line, mine, own) for line, mine in self._returnable(overdue).items())

    def _returnable(self, overdue: bool) -> dict[tuple[str, int], list[HeldEnvelope]]:
        """Return the envelopes that may be given back, by model and priority.

        An overdue device gives back urgent envelopes too, and however often they were given back; but not those that it
        runs: it may have stalled under such an envelope, which must not stall another node's.
        """
        stuck = self._batcher.running_groups() if overdue else []
        found: defaultdict[tuple[str, int], list[HeldEnvelope]] = defaultdict(list)
        for one in self._held.now():
            usual = one.priority != Priority.INTERACTIVE and one.returned < MOST_RETURNS
            if one.may_return and (usual or overdue) and one.group not in stuck:
                found[one.model, one.priority].append(one)
        return found

    def _give_back(self, model: str, priority: int, mine: Sequence[HeldEnvelope], own: Mapping[int, float]) -> int:
        rate, envelope = self._batcher.rates.get(model), self._usual(model)
        if rate is None or envelope is None or not (peers := self._peers.of(model, envelope, rate)):
            return 0
        own_s = _until(own, priority)
        # those of which most is left come first, and of these the newest
        left = {one: rate.seconds(one.left) for one in mine}
        begun = [one for one in reversed(mine) if left[one] >= rate.seconds(one.amount) / 2]
        begun.sort(key=left.__getitem__, reverse=True)
        if not to_give_back(own_s, [left[one] for one in begun], peers, 0):
            return 0  # without asking Redis
        count = to_give_back(own_s, [left[one] for one in begun], peers, self._queued(model, priority))
        if count:
            self._cool_until = self._clock() + COOL_S
        for one in begun[:count]:
            self._held.give_back(one, self._batcher)
        return count

    def _queued(self, model: str, priority: int) -> int:
        """Return the number of messages of a model that wait at a priority, or more urgently."""
        redis = self._publisher.redis
        wanted = [step for step in Priority if step <= priority]
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            for lane in self._lanes():
                for step in wanted:
                    pipeline.llen(redis_key(model, step, lane))
            return sum(pipeline.execute())

    def leave(self) -> None:
        """Take part no longer. Raises BrokerUnavailable or Overloaded."""
        self._peers.leave()


def _until(own: Mapping[int, float], priority: int) -> float:
    """Return the seconds of the work that is at least as urgent."""
    return sum(seconds for step, seconds in own.items() if step <= priority)


def _seconds(rate: WorkRate | None, work: Amount | None) -> float:
    return float("inf") if rate is None or work is None else rate.seconds(work)
