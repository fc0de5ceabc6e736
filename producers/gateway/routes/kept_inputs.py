"""The inputs that the store still has, for people to look at: texts as they are, images told by their own first bytes.

What a tenant submitted is shown to whoever looks, so nothing in it says what it is: only the formats below are images, their
type comes from here, and one that would need a great deal of memory to draw is not handed out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from producers.gateway.routes.image_sizes import ImageSize, image_size
from producers.wire.blobs import Blobs
from producers.wire.errors import ArgosyError, InvalidMessage
from producers.wire.messages import BlobInput, InlineBytes, Input, PathInput, UrlInput, decode, decode_bytes
from results_store.records import Result
from results_store.store import Store

#: Characters of a text that a list shows; the whole is asked for item by item.
EXCERPT = 600

#: The largest input that is fetched from where it lies by reference, and the most pixels that are handed out.
MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """An image's bytes, with the type and the size that they themselves show."""

    data: bytes
    size: ImageSize


class KeptInputs:
    """Reads inputs out of the envelopes that the store keeps. It waits for the store and for blobs: for a thread."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    def of(self, results: Collection[Result]) -> dict[int, Input]:
        """Return by `seq` the inputs of those items of one job that are still kept."""
        wanted = {result.seq: result.envelope for result in results}
        found: dict[int, Input] = {}
        for id_, payload in self._store.inputs(set(wanted.values())).items():
            for item in _items(*payload):
                if wanted.get(item.seq) == id_:
                    found[item.seq] = item.input
        return found

    def carried(self, value: Input) -> Input:
        """Return an input that lies elsewhere by reference as if it had come inline. Raises InvalidInput, BlobsUnavailable."""
        return self._blobs.get(value, MOST_BYTES) if isinstance(value, BlobInput) else value

    def picture(self, value: Input | None) -> Picture | None:
        """Return an input as an image; None if it is none, or not one to hand out. Raises as `carried`."""
        if value is None:
            return None
        whole = self.carried(value)
        if not isinstance(whole, InlineBytes):
            return None
        size = image_size(whole.data)
        if size is None or size.pixels > MOST_PIXELS:
            return None
        return Picture(whole.data, size)


def _items(payload: bytes, content_type: str) -> Collection[Any]:
    try:
        return decode(decode_bytes(payload, content_type))[0].items
    except InvalidMessage:  # of a version that is read here no more
        return ()


def shown(value: Input | None, *, limit: int | None = EXCERPT) -> dict[str, Any]:
    """Return an input as a list shows it: `form`, and what there is to say of it without fetching anything."""
    match value:
        case None:
            return {"form": "gone"}
        case str():
            return {"form": "text", "text": value[:limit], "characters": len(value)}
        case InlineBytes(data):
            return _bytes_shown(data)
        case PathInput(place) | UrlInput(place):
            return {"form": "path" if isinstance(value, PathInput) else "url", "text": place[:limit]}
        case BlobInput():  # what it is shows once it is fetched
            return {"form": "text" if value.text else "image", "stored": "by reference", "drawable": not value.text}
        case _:
            fields: dict[str, Any] = msgspec.to_builtins(value)
            named = {name: _short(inner, limit) for name, inner in fields.items() if name != "type"}
            return {"form": "object", "fields": named}


def _bytes_shown(data: bytes) -> dict[str, Any]:
    size = image_size(data)
    if size is None:
        return {"form": "bytes", "bytes": len(data)}
    return {"form": "image", "bytes": len(data), "drawable": size.pixels <= MOST_PIXELS, **size.view()}


def _short(value: Any, limit: int | None) -> Any:
    if isinstance(value, dict) and value.get("type") == "bytes":  # a file among them, in base64
        return f"{len(value['data']) * 3 // 4:,} bytes"
    if isinstance(value, str):
        return value[:limit]
    return [_short(inner, limit) for inner in value[:20]] if isinstance(value, list | tuple) else value


def in_full(kept: KeptInputs, value: Input | None) -> dict[str, Any]:
    """Return an input in full, as `shown` does; one whose reference leads nowhere as gone, with the reason."""
    if not isinstance(value, BlobInput):
        return shown(value, limit=None)
    try:
        return shown(kept.carried(value), limit=None)
    except ArgosyError as error:
        return {"form": "gone", "reason": str(error)}
