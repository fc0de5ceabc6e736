"""The limits of the inputs that a worker reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from producers.wire.blobs import Blobs, BlobSettings
from producers.wire.errors import InputTooLarge

#: The field that errors of an input name.
FIELD = "input"


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The limits of the inputs that a worker reads. Paths and URLs are read only if they are listed here.

    `allowed_roots` are folders. `allowed_hosts` are ``host``, ``host:port``, or ``*.domain`` (any host under it), by
    https; ``http://host`` allows a host by plain http. `allow_private_addresses` allows listed hosts inside the own
    network. `blobs` is the storage of inputs that are sent by reference.
    """

    max_text_chars: int = 100_000
    max_input_bytes: int = 20 * 1024 * 1024
    allowed_roots: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    fetch_timeout_s: float = 20.0
    max_redirects: int = 3
    blobs: Blobs = field(default_factory=lambda: Blobs(BlobSettings()))

    def check_size(self, size_bytes: int) -> None:
        """Raise InputTooLarge if a file of this size is over the limit."""
        if size_bytes > self.max_input_bytes:
            problem = f"has {size_bytes:,} bytes or more, over {self.max_input_bytes:,}"
            raise InputTooLarge(FIELD, problem, "send a smaller file")
