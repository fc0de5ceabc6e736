"""How nodes share work: what a node takes, declines and gives back. Pure functions of predicted seconds.

A *peer* is another living node. It has seconds of work in hand, and takes some seconds for an envelope. The functions
compare the time at which this node would have done its work with the time at which its peers would have done it, as in
list scheduling (Graham 1969): each envelope goes to the node that ends it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: A node beside others takes no more envelopes while it has so many seconds of work in hand.
HOLD_S = 1.0

#: It takes as many envelopes of a list nevertheless, so that one is prepared while another is computed.
LEAST_HELD = 2

#: A node is slow beside a peer that needs less than this share of its time.
SLOW_SHARE = 2 / 3

#: The seconds that moving an envelope takes (a lease, a message, a claim, a preparation), and each further one.
MOVE_S = 0.1
MOVE_MORE_S = 0.02

#: The most envelopes that are given back at a time.
MOST_MOVED = 8


class Peer(NamedTuple):
    """A peer: its seconds of work in hand, and its seconds for an envelope."""

    ahead_s: float
    envelope_s: float


def done_in_s(peers: Sequence[Peer], envelopes: int) -> float:
    """Return the seconds until the peers have done `envelopes` beside what they have in hand; infinite without peers.

    The peers share the envelopes so that all end at the same time, but nobody ends one sooner than it can.
    """
    if not peers:
        return float("inf")
    first_s = min(peer.ahead_s + peer.envelope_s for peer in peers)
    speed, done, level_s = 0.0, 0.0, 0.0
    for peer in sorted(peers):
        reached = done + speed * (peer.ahead_s - level_s)
        if speed and reached >= envelopes:
            break
        done, level_s = reached, peer.ahead_s
        speed += 1.0 / max(peer.envelope_s, 1e-9)
    return max(first_s, level_s + (envelopes - done) / speed)


def is_slow(envelope_s: float, peers: Sequence[Peer]) -> bool:
    """Return whether a node that takes `envelope_s` for an envelope is slow beside one of its peers."""
    return any(peer.envelope_s < SLOW_SHARE * envelope_s for peer in peers)


def takes(ahead_s: float, envelope_s: float, peers: Sequence[Peer], queued: int) -> bool:
    """Return whether a slow node takes the last of `queued` envelopes: if it ends it before its peers would."""
    return queued > 0 and ahead_s + envelope_s <= done_in_s(peers, queued)


def to_give_back(ahead_s: float, left_s: Sequence[float], peers: Sequence[Peer], queued: int) -> int:
    """Return how many of the held envelopes, with their seconds left, are given back, in this order.

    The peers would end each of them, after the `queued` envelopes, before this node would have done its work.
    """
    count = 0
    for left in left_s[:MOST_MOVED]:
        if done_in_s(peers, queued + count + 1) + MOVE_S + MOVE_MORE_S * count >= ahead_s:
            break
        ahead_s -= left
        count += 1
    return count
