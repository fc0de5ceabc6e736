"""A gateway's connection whose peer takes nothing, without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from producers.gateway.connections import UNREAD_S, BoundedConnection


class Peer:
    """A connection's transport and loop: `left` bytes are not taken, and `timers` are those that run."""

    def __init__(self) -> None:
        self.left = 0
        self.is_cut_off = False
        self.timers: list[SimpleNamespace] = []

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.is_cut_off = True

    def call_later(self, seconds: float, call: Any, *arguments: Any) -> SimpleNamespace:
        assert seconds == UNREAD_S
        timer: SimpleNamespace = SimpleNamespace(run=lambda: call(*arguments), cancel=lambda: self._cancel(timer))
        self.timers.append(timer)
        return timer

    def _cancel(self, timer: SimpleNamespace) -> None:
        if timer in self.timers:
            self.timers.remove(timer)

    def pass_time(self) -> None:
        for timer in self.timers[:]:
            self.timers.remove(timer)
            timer.run()


def connection(peer: Peer, *, answered: bool) -> BoundedConnection:
    made: Any = object.__new__(BoundedConnection)
    made.transport = made.loop = peer
    made.flow = FlowControl(peer)  # type: ignore[arg-type]
    made.cycle = SimpleNamespace(response_complete=answered)
    made.client, made._unread = None, None
    return made  # type: ignore[no-any-return]


def test_the_rest_of_a_whole_answer_is_taken_or_the_connection_ends() -> None:
    """The peer takes most of it, so that the buffer is no longer full, and then nothing more."""
    peer = Peer()
    one = connection(peer, answered=True)
    peer.left = 100_000
    one.pause_writing()
    peer.left = 10_000
    one.resume_writing()
    peer.pass_time()
    assert peer.is_cut_off


def test_a_slow_peer_keeps_its_connection() -> None:
    peer = Peer()
    one = connection(peer, answered=True)
    peer.left = 100_000
    one.pause_writing()
    for peer.left in (60_000, 20_000, 0):
        peer.pass_time()
    assert not peer.is_cut_off
    assert peer.timers == []


def test_an_answer_that_is_still_written_is_its_guards() -> None:
    """Who reads it again keeps the connection, however much of it is in the buffer."""
    peer = Peer()
    one = connection(peer, answered=False)
    peer.left = 100_000
    one.pause_writing()
    peer.left = 10_000
    one.resume_writing()
    assert peer.timers == []
