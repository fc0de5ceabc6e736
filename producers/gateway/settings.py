"""What one gateway allows. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Limits on what callers send and on how long they are served.

    `max_body_bytes` bounds a request's body; a stream of JSON Lines may be `max_stream_bytes` long, each of its lines
    `max_body_bytes`, and an uploaded file `max_file_bytes`. `max_items` bounds one submission. A key may make
    `rate_per_s` requests a second, and twice as many at once after a pause. `max_wait_s` is the longest that a request
    waits for results, `openai_wait_s` how long one of the OpenAI shapes waits before it answers with an error.
    Somebody who sends or takes nothing for `stall_s` in the middle of a transfer is cut off. `max_requests` are
    served at the same time. While the fleet is full, many items in a body wait `patience_s` for room, a stream of them
    `max_wait_s`. `batch_window_s` is how long a batch of requests may take.
    """

    auth: bool = True
    max_body_bytes: int = 32 * 2**20
    max_stream_bytes: int = 16 * 2**30
    max_file_bytes: int = 200 * 2**20
    max_items: int = 1_000_000
    rate_per_s: float = 100.0
    max_wait_s: float = 120.0
    openai_wait_s: float = 120.0
    patience_s: float = 10.0
    stall_s: float = 30.0
    max_requests: int = 2_000
    batch_window_s: float = 24 * 3600.0
    batch_lease_s: float = 30.0
    store_timeout_s: float = 10.0
