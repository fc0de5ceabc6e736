"""The limits of a gateway. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Limits on the size, rate and duration of requests.

    `max_body_bytes` bounds a request's body and each line of a JSON Lines stream; `max_stream_bytes` bounds the whole
    stream, `max_file_bytes` an uploaded file, and `max_items` one submission. A key may make `rate_per_s` requests per
    second, and a burst of twice as many after a pause.

    A request waits for results for at most `max_wait_s`; under /v1 it answers with an error after `openai_wait_s`. A
    caller that sends or reads nothing for `stall_s` during a transfer is cut off. `max_requests` are served at once; a
    key may hold as many of them as are free, so that there is always room for another key. They are fewer if the
    process may not open as many connections.

    While the fleet is full, the items of a body wait up to `patience_s`, those of a stream up to `max_wait_s`.
    A webhook is signed with each of `webhook_secrets`; without any, submissions with a webhook are refused.
    `webhook_private` sends to http URLs and to addresses that are not public, too.

    `batch_window_s` is the time limit of an OpenAI batch; every `batch_look_s` the gateway looks for open batches.
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
    batch_look_s: float = 5.0
    store_timeout_s: float = 10.0

    webhook_secrets: tuple[str, ...] = ()
    webhook_private: bool = False

    #: The `tokenizer.json` whose token ids /v1/embeddings reads.
    embedding_tokenizer: Path | None = None
    #: Names under which a gateway without keys answers, besides those of this machine.
    allowed_hosts: tuple[str, ...] = ()
    #: Other sites whose pages may use the API, as ``https://host``; ``*`` for all.
    allowed_origins: tuple[str, ...] = ()

    @property
    def max_held_bytes(self) -> int:
        """The most bytes of bodies in memory. A key alone may hold half of them, and so two of the largest bodies."""
        return 4 * self.max_body_bytes
