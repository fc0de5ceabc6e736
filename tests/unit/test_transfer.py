"""Frames between parent and device process."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from workers.device import transfer


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (1,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "bool"])
def test_arrays_arrive_as_they_were(pair, shape, dtype):
    """Shape, type and every value, also of arrays that are views and arrays without elements."""
    sent = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(dtype)
    flipped = sent.T[::-1]
    transfer.send(pair[0], {"event": "x", "n": 1}, {"a": sent, "b": flipped})
    header, arrays = transfer.receive(pair[1])
    assert header == {"event": "x", "n": 1}
    np.testing.assert_array_equal(arrays["a"], sent)
    np.testing.assert_array_equal(arrays["b"], flipped)
    assert arrays["a"].dtype == sent.dtype


def test_frames_keep_their_order_and_bounds(pair):
    """One after another on one stream, none runs into the next."""
    for n in range(5):
        transfer.send(pair[0], {"n": n}, {"a": np.full(n, n)})
    assert [transfer.receive(pair[1])[0]["n"] for _ in range(5)] == list(range(5))


def test_a_closed_or_broken_stream_is_the_end(pair):
    """The other end's death, in the middle of a frame too, is an end and not an error."""
    pair[0].sendall(b"\x05\x00\x00")
    pair[0].close()
    assert transfer.receive(pair[1]) is None
