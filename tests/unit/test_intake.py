"""From which lists a node takes, by what it holds and what its peers say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from workers.batching.planning.work_seconds import Amount, WorkRate
from workers.batching.work import Group
from workers.node.held_envelopes import HeldEnvelope, HeldEnvelopes
from workers.node.intake import LEFT_S, UNKNOWN_IN_COLUMNS, URGENT_LEFT_S, Listed, SharedIntake
from workers.node.peers import SILENT_S, ModelWork, NodeWork, Peers
from workers.node.training.training_intake import TrainingIntake

URGENT, STANDARD, BULK = ("argosy.text", 0), ("argosy.text", 3), ("argosy.text", 9)
OTHER = ("argosy.text/1", 9)
LISTS = [URGENT, STANDARD, BULK]

#: An envelope of 64 rows takes 0.256 s.
FAST = WorkRate(row_s=0.004, batch_rows=64)
SLOW = WorkRate(row_s=0.04, batch_rows=64)
ENVELOPE = Amount(64, 64, 64)


class Node:
    """A node with a clock of its own: its batcher, its lists, and the peers that it hears of."""

    def __init__(self, rate: WorkRate | None = FAST) -> None:
        self.now = 0.0
        self.rates = {} if rate is None else {"text": rate}
        self.waiting: list[tuple[str, int, Amount]] = []
        self.busy, self.overdue = 0.0, 0.0
        self.room: set[str] = set()
        self.taken: Counter[Listed] = Counter()
        self.queued: Counter[Listed] = Counter()
        self.envelopes = HeldEnvelopes(cast("Any", None), worker="w", lease_s=60)
        self.envelopes.usual["text"] = ENVELOPE
        self.peers = Peers(cast("Any", None), "me", lambda: self.now)
        self.intake = SharedIntake(
            self.envelopes, cast("Any", self), self.peers, cast("Any", None), ["text"], lambda: [0], lambda: self.now
        )

    # what it asks of its batcher and of its lists

    def amounts(self) -> list[tuple[str, int, Amount]]:
        return self.waiting

    def busy_s(self) -> tuple[float, float]:
        return self.busy, self.overdue

    def with_room(self) -> set[str]:
        return self.room

    def held(self) -> Counter[Listed]:
        return self.taken

    def lengths(self, lists: Sequence[Listed]) -> list[int]:
        return [self.queued[listed] for listed in lists]

    # what the tests do

    def hear(self, **rates: WorkRate | None) -> None:
        """Hear twice of peers with these rates, which have nothing in hand."""
        for number in (1, 2):
            works = {
                name: NodeWork(number=number, models={"text": ModelWork(rate=rate, usual=ENVELOPE)})
                for name, rate in rates.items()
            }
            self.peers.hear({name.encode(): msgspec.json.encode(work) for name, work in works.items()})

    def prepare(self, listed: Listed, count: int, rows: float) -> None:
        """Hold envelopes of a list, which have so many rows left at the batcher."""
        self.taken[listed] += count
        self.waiting.append(("text", listed[1], Amount(rows, rows, rows)))
        for number in range(count):
            held = HeldEnvelope(f"{listed} {number}", "job", model="text", priority=listed[1], group=Group([]))
            self.envelopes._held[held.id] = held

    def takes(self, lists: Sequence[Listed] = LISTS) -> list[Listed]:
        return list(self.intake.choose(lists, self).lists)


def test_a_node_alone_takes_from_all_lists() -> None:
    """Its slots are the limit: nobody else could compute anything of it."""
    node = Node()
    node.waiting = [("text", 9, Amount(3000, 3000, 3000))]
    assert node.takes() == LISTS


def test_beside_others_a_second_of_work_is_enough() -> None:
    """Whatever it holds, it takes urgent envelopes, and standard ones beside any amount of bulk."""
    node = Node()
    node.hear(other=FAST)
    node.prepare(BULK, 8, rows=240)
    assert node.takes() == LISTS
    node.prepare(BULK, 0, rows=20)
    assert node.takes() == [URGENT, STANDARD]
    node.prepare(STANDARD, 8, rows=240)
    assert node.takes() == [URGENT, STANDARD]
    node.prepare(STANDARD, 0, rows=20)
    assert node.takes() == [URGENT]


def test_envelopes_that_are_not_prepared_yet_count_as_usual_ones() -> None:
    """Otherwise a node would take dozens before the first is prepared."""
    node = Node()
    node.hear(other=FAST)
    node.taken[BULK] = 3
    assert node.takes() == LISTS
    node.taken[BULK] = 4
    assert node.takes() == [URGENT, STANDARD]


def test_two_envelopes_of_each_list_are_held_however_long_they_take() -> None:
    """One is prepared while another is computed, and another tenant need not wait."""
    node = Node(WorkRate(row_s=1.0, batch_rows=64))
    node.hear(other=WorkRate(row_s=1.0, batch_rows=64))
    node.taken[BULK] = 1
    assert node.takes([BULK, OTHER]) == [BULK, OTHER]
    node.taken[BULK] = 2
    assert node.takes([BULK, OTHER]) == [OTHER]


def test_of_unknown_costs_two_envelopes_are_enough() -> None:
    node = Node(rate=None)
    node.hear(other=None)
    node.taken[BULK] = 2
    assert node.takes() == [URGENT, STANDARD]


def test_a_stepwise_model_gets_as_many_requests_as_its_device_holds() -> None:
    node = Node()
    node.hear(other=FAST)
    node.taken[BULK], node.waiting = 8, [("text", 9, Amount(999, 999, 999))]
    node.room = {"text#2"}
    assert BULK in node.takes()


def test_a_slow_node_takes_the_newest_of_a_long_list() -> None:
    """An envelope takes it 2.56 s; the fast one ends the eleventh after 2.8 s, and the ninth after 2.3."""
    node = Node(SLOW)
    node.hear(fast=FAST)
    node.queued[BULK] = 9
    assert node.takes() == []
    node.queued[BULK] = 11
    wanted = node.intake.choose(LISTS, node)
    assert list(wanted.lists) == [BULK]
    assert wanted.newest
    node.busy = 2.0
    assert node.takes() == []


def test_a_slow_node_takes_urgent_envelopes_that_are_left_lying() -> None:
    """The fast one takes them at once, unless it is full or its consumer stands still."""
    node = Node(SLOW)
    node.hear(fast=FAST)
    node.queued[URGENT] = 1
    assert node.takes() == []
    node.now += URGENT_LEFT_S
    assert node.takes() == [URGENT]


def test_a_slow_node_does_not_trust_a_peer_that_takes_nothing() -> None:
    """It says that it lives, and the list becomes no shorter."""
    node = Node(SLOW)
    node.queued[BULK] = 3
    for _ in range(10):
        node.hear(fast=FAST)
        assert node.takes() == []
        node.now += LEFT_S / 10
    node.hear(fast=FAST)
    assert node.takes() == [BULK]


def test_a_node_whose_device_is_stalled_leaves_work_to_its_peers() -> None:
    """Its costs say nothing about a batch that does not end."""
    node = Node()
    node.hear(other=FAST)
    node.busy = node.overdue = 3.0
    node.queued[BULK] = 3
    assert node.takes() == []


def test_a_peer_that_falls_silent_is_no_peer() -> None:
    """Nor is one whose words are only found: it may have died before."""
    node = Node(SLOW)
    node.queued[BULK] = 1
    node.peers.hear({b"fast": msgspec.json.encode(NodeWork(number=1, models={"text": ModelWork(rate=FAST)}))})
    assert node.takes() == LISTS
    node.hear(fast=FAST)
    assert node.takes() == []
    node.now += SILENT_S
    assert node.takes() == LISTS


ENDLESS = b'{"number": 1, "models": {"text": {"rate": {"batch_rows": 0.0}}}}'


def test_nonsense_of_another_program_is_no_peer() -> None:
    node = Node()
    node.peers.hear(
        {b"x": b"\xff", b"y": b'{"number": "two"}', b"z": ENDLESS, b"me": msgspec.json.encode(NodeWork(number=1))}
    )
    assert node.peers.living() == []


def test_an_envelope_in_columns_is_half_a_second_of_work() -> None:
    """By the texts that came; before the first, by a usual text."""
    node = Node(FAST)
    assert node.intake.in_columns("text") == 125
    node.rates["text"] = WorkRate(row_s=1e-6, batch_rows=64)
    assert node.intake.in_columns("text") == 500_000
    node.rates["text"] = WorkRate(row_s=2.0, batch_rows=64)
    assert node.intake.in_columns("text") == 1
    assert node.intake.in_columns("other") == UNKNOWN_IN_COLUMNS
    node.rates["other"] = WorkRate(cost_s=0.0001, batch_rows=64, batch_cost=1024)
    assert node.intake.in_columns("other") == 78


def test_a_large_envelope_makes_a_crowd() -> None:
    """Its device does not want for work, so that it waits for the host; an urgent one says nothing of that."""
    held = HeldEnvelopes(cast("Any", None), worker="w", lease_s=60)

    def crowded(*, urgent: bool) -> bool:
        before = held.crowded_s()
        with held.taking("e", "j", urgent=urgent):
            pass
        return held.crowded_s() > before

    assert not crowded(urgent=False)
    held.usual["text"] = Amount(50_000, 1_000, 2_000)
    assert crowded(urgent=False)
    assert not crowded(urgent=True)


def test_trainings_come_last_and_only_to_a_node_with_nothing_else() -> None:
    """Their list is behind all others, and left out while the node may not train; that is no reason to poll sooner.

    An unacknowledged message is enough, of a training, too: its envelope may not have begun.
    """
    node, training, may = Node(), ("argosy.training", 0), [True]
    intake = TrainingIntake(node.intake, lambda holds: may[0] and not holds)
    chosen = intake.choose([training, *LISTS], node)
    assert (chosen.lists, chosen.last, chosen.several, chosen.all) == (LISTS, [training], False, True)
    may[0] = False
    chosen = intake.choose([training, *LISTS], node)
    assert (chosen.lists, chosen.last, chosen.several, chosen.all) == (LISTS, (), True, True)
    may[0] = True
    node.taken[training] = 1
    assert not intake.choose([training, *LISTS], node).last


def test_a_training_is_no_work_that_peers_could_end_sooner() -> None:
    """A node that trains takes as much bulk beside a peer as one that does nothing."""
    node = Node()
    node.hear(other=FAST)
    node.prepare(BULK, 8, rows=20)
    node.taken[("argosy.training", 9)] = 1
    assert node.takes() == LISTS
