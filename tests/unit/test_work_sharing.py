"""What a node takes, declines and gives back, by predicted seconds alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching.planning.work_sharing import MOVE_S, Peer, done_in_s, is_slow, takes, to_give_back

SECONDS = st.floats(0.001, 20.0)
PEERS = st.lists(st.builds(Peer, st.floats(0.0, 20.0), SECONDS), min_size=1, max_size=5)


def test_peers_share_envelopes_so_that_all_end_at_the_same_time() -> None:
    """A peer that is busy for a second takes fewer than an idle one."""
    assert done_in_s([Peer(0.0, 0.25)], 8) == pytest.approx(2.0)
    assert done_in_s([Peer(0.0, 0.25), Peer(1.0, 0.25)], 8) == pytest.approx(1.5)
    assert done_in_s([Peer(0.0, 0.25), Peer(9.0, 0.25)], 8) == pytest.approx(2.0)
    assert done_in_s([Peer(0.0, 0.25)] * 4, 1) == pytest.approx(0.25), "an envelope is not divided"
    assert done_in_s([], 1) == math.inf


@given(peers=PEERS, envelopes=st.integers(1, 100))
def test_more_envelopes_take_longer_and_more_peers_take_no_longer(peers: list[Peer], envelopes: int) -> None:
    """As any schedule; a wrong sign would send work to the busiest node."""
    seconds = done_in_s(peers, envelopes)
    assert done_in_s(peers, envelopes + 1) >= seconds - 1e-9
    assert done_in_s([*peers, Peer(0.0, 1.0)], envelopes) <= seconds + 1e-9
    assert seconds >= min(peer.ahead_s + peer.envelope_s for peer in peers) - 1e-9


def test_only_a_node_that_needs_much_longer_is_slow() -> None:
    """Like nodes decline nothing: their costs differ by a few per cent from minute to minute."""
    assert not is_slow(0.25, [Peer(0.0, 0.24), Peer(0.0, 0.2)])
    assert is_slow(2.5, [Peer(0.0, 0.25)])
    assert not is_slow(0.25, [Peer(0.0, 2.5)])
    assert not is_slow(2.5, [])


def test_a_slow_node_takes_what_it_ends_before_the_fast_one() -> None:
    """Ten times slower, it takes the last of eleven envelopes, but not of nine, and nothing beside what it holds."""
    fast = [Peer(0.0, 0.25)]
    assert takes(0.0, 2.5, fast, 11)
    assert not takes(0.0, 2.5, fast, 9)
    assert not takes(2.5, 2.5, fast, 11)
    assert takes(2.5, 2.5, fast, 21)
    assert not takes(0.0, 0.1, fast, 0)


def test_an_idle_like_node_gets_half() -> None:
    """A node with two seconds of work gives an idle one what both then end at about the same time."""
    assert to_give_back(2.0, [0.25] * 8, [Peer(0.0, 0.25)], 0) == 4
    assert to_give_back(2.0, [0.25] * 8, [Peer(1.9, 0.25)], 0) == 0


def test_a_slow_node_gives_everything_back_that_an_idle_fast_one_ends_sooner() -> None:
    assert to_give_back(5.0, [2.5, 2.5], [Peer(0.0, 0.25)], 0) == 2
    assert to_give_back(0.3, [0.3], [Peer(0.0, 0.25)], 0) == 0, "moving takes time as well"


def test_nothing_is_given_back_while_messages_wait() -> None:
    """An idle node takes those."""
    assert to_give_back(2.0, [0.25] * 8, [Peer(0.0, 0.25)], 10) == 0


@given(peers=PEERS, left=st.lists(SECONDS, max_size=10), more=SECONDS, queued=st.integers(0, 20))
def test_what_is_given_back_ends_sooner_than_it_would_have(
    peers: list[Peer], left: list[float], more: float, queued: int
) -> None:
    """Otherwise two nodes would pass their work to and fro."""
    ahead_s = sum(left) + more
    count = to_give_back(ahead_s, left, peers, queued)
    if count:
        assert done_in_s(peers, queued + count) + MOVE_S < ahead_s - sum(left[: count - 1]) + 1e-9
