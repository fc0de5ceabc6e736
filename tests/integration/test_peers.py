"""Nodes that hear of each other through Redis, and what they then give back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from producers.wire.errors import BrokerUnavailable
from producers.wire.messages import Priority
from producers.wire.publisher import Publisher
from producers.wire.queues import redis_key
from tests.unit.test_intake import ENVELOPE, FAST, SLOW, Node
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.work import Entry, Group
from workers.node.held_envelopes import HeldEnvelope
from workers.node.intake import MOST_RETURNS, SharedIntake
from workers.node.peers import ModelWork, Peers


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    publisher = Publisher(broker_url)
    yield publisher
    publisher.close()


class SharingNode(Node):
    """A node with the real Redis; it notes what it gives back."""

    def __init__(self, publisher: Publisher, rate: Any = FAST) -> None:
        super().__init__(rate)
        self.running: list[Group] = []
        self.returned: list[Group] = []
        self.peers = Peers(publisher, "me", lambda: self.now)
        self.intake = SharedIntake(
            self.envelopes, cast("Any", self), self.peers, publisher, ["text"], lambda: [0], lambda: self.now
        )
        self.intake.choose([], self)

    def running_groups(self) -> list[Group]:
        return self.running

    def give_back(self, group: Group, *, begun: bool = True) -> None:
        self.returned.append(group)

    def hold(self, priority: int, rows: int, *, returned: int = 0, may_return: bool = True) -> Group:
        """Hold an envelope that has rows at the batcher."""
        waiting = Waiting("text", priority, 1, 0.0)
        group = Group([Entry(cast("Any", None), ("topic",), waiting) for _ in range(rows)])
        id_ = str(len(self.envelopes._held))
        held = HeldEnvelope(id_, "job", returned, "text", priority, group, may_return)
        self.envelopes._held[id_] = held
        self.waiting.append(("text", priority, held.left))
        return group


def announce(publisher: Publisher, node: SharingNode, rate: Any = FAST, ahead_s: float = 0.0) -> None:
    """Another node says twice that it lives."""
    other = Peers(publisher, "other")
    for _ in range(2):
        other.exchange(ahead_s, {"text": ModelWork(rate=rate, usual=ENVELOPE)})
        node.peers.exchange(0.0, {})


def test_nodes_hear_of_each_other_until_one_leaves(publisher: Publisher) -> None:
    """Each keeps its own entry, and a node that leaves is gone at the next look."""
    first, second = Peers(publisher, "first"), Peers(publisher, "second")
    for _ in range(2):
        first.exchange(1.5, {"text": ModelWork(rate=SLOW, usual=ENVELOPE)})
        second.exchange(0.0, {"text": ModelWork()})
    assert [work.ahead_s for work in second.living()] == [1.5]
    assert second.usual("text") == ENVELOPE
    assert second.of("text", ENVELOPE, FAST) == [(1.5, pytest.approx(2.56))]
    first.exchange(1.5, {})
    assert first.of("text", ENVELOPE, FAST) == [(0.0, pytest.approx(0.256))], "a node that joins counts as this one"
    first.leave()
    second.exchange(0.0, {})
    assert second.living() == []


def test_a_broker_that_is_away_is_named(publisher: Publisher) -> None:
    """The duty tries again, and meanwhile its node has no peers."""
    away = Publisher("redis://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        Peers(away, "me").exchange(0.0, {})


def test_an_idle_node_gets_its_part_unless_messages_wait(publisher: Publisher) -> None:
    """Of eight envelopes, two seconds of work, it gets four; whatever waits in Redis it takes itself."""
    node = SharingNode(publisher)
    groups = [node.hold(9, 64) for _ in range(8)]
    assert node.intake.share() == 0, "nobody else is there"
    announce(publisher, node)
    for _ in range(10):
        publisher.redis.lpush(redis_key("text", Priority.BULK), b"{}")
    assert node.intake.share() == 0
    publisher.redis.delete(redis_key("text", Priority.BULK))
    assert node.intake.share() == 4
    assert node.returned == groups[:3:-1], "the newest"
    assert node.takes([("argosy.text", 9)]) == [], "or it would take them again"


def test_what_is_half_done_or_came_back_too_often_or_must_stay_is_kept(publisher: Publisher) -> None:
    """Also urgent envelopes, which would wait again."""
    node = SharingNode(publisher, SLOW)
    half = node.hold(9, 64)
    for entry in half.entries[:40]:
        entry.outcome = cast("Any", object())
    node.hold(9, 64, returned=MOST_RETURNS)
    node.hold(9, 64, may_return=False)
    node.hold(0, 64)
    announce(publisher, node)
    assert node.intake.share() == 0
    goes = node.hold(9, 64, returned=MOST_RETURNS - 1)
    assert node.intake.share() == 1
    assert node.returned == [goes]


def test_an_overdue_device_keeps_only_what_it_runs(publisher: Publisher) -> None:
    """What stalled it must not stall another; urgent and often returned envelopes must not wait for it."""
    node = SharingNode(publisher)
    node.running = [node.hold(9, 64)]
    node.busy = node.overdue = 5.0
    others = [node.hold(0, 1), node.hold(9, 64, returned=MOST_RETURNS)]
    announce(publisher, node)
    assert node.intake.share() == 2
    assert node.returned == others
