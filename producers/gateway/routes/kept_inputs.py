"""The stored inputs as people see them: texts as they are, images by the format in their first bytes.

Inputs come from strangers, so their own claims are ignored. Only the formats below count as images, and their media
type is set here. An image that would need very much memory to draw is not served.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from producers.gateway.routes.image_sizes import ImageSize, image_size
from producers.wire.blobs import Blobs
from producers.wire.errors import ArgosyError, InvalidMessage
from producers.wire.messages import (
    BlobInput,
    DerivedInput,
    InlineBytes,
    Input,
    PathInput,
    UrlInput,
    stored_envelope,
)
from results_store.records import Result
from results_store.store import Store

#: Characters of a text in a list; a request for the item returns the whole text.
EXCERPT = 600

#: Parts of an array in a list; a request for the item returns all.
LISTED = 20

#: The largest blob that is fetched, and the most pixels of an image that is served.
MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image's bytes, with the type and size from its header."""

    data: bytes
    size: ImageSize


class KeptInputs:
    """Reads inputs from the stored envelopes. It blocks on the store and on blobs, so run it in a thread."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    def of(self, results: Collection[Result]) -> dict[int, Input]:
        """Return the inputs of a job's items that are still stored, by `seq`."""
        wanted = {result.seq: result.envelope for result in results}
        found: dict[int, Input] = {}
        for id_, payload in self._store.inputs(set(wanted.values())).items():
            for item in _items(*payload):
                if wanted.get(item.seq) == id_:
                    found[item.seq] = item.input
        return found

    def carried(self, value: Input) -> Input:
        """Return an input by reference as an inline input. Raises InvalidInput or BlobsUnavailable."""
        return self._blobs.get(value, MOST_BYTES) if isinstance(value, BlobInput) else value

    def picture(self, value: Input | None) -> KeptImage | None:
        """Return an input as an image, or None if it cannot be served. Raises the same errors as `carried`."""
        if value is None:
            return None
        whole = self.carried(value)
        if not isinstance(whole, InlineBytes):
            return None
        size = image_size(whole.data)
        if size is None or size.pixels > MOST_PIXELS:
            return None
        return KeptImage(whole.data, size)


def _items(payload: bytes, content_type: str) -> Collection[Any]:
    try:
        return stored_envelope(payload, content_type)[0].items
    except InvalidMessage:  # of a version that is no longer supported
        return ()


def shown(value: Input | None, *, limit: int | None = EXCERPT) -> dict[str, Any]:
    """Return an input for a list: its `form`, and all that is known without fetching anything."""
    match value:
        case None:
            return {"form": "gone"}
        case str():
            return {"form": "text", "text": value[:limit], "characters": len(value)}
        case InlineBytes(data):
            return _bytes_shown(data)
        case PathInput(place) | UrlInput(place):
            return {"form": "path" if isinstance(value, PathInput) else "url", "text": place[:limit]}
        case BlobInput():  # its content is known only once it is fetched
            return {"form": "text" if value.text else "image", "stored": "by reference", "drawable": not value.text}
        case _:
            fields: dict[str, Any] = msgspec.to_builtins(value)
            named = {name: _short(inner, limit) for name, inner in fields.items() if name != "type"}
            return {"form": "derived" if isinstance(value, DerivedInput) else "object", "fields": named}


def _bytes_shown(data: bytes) -> dict[str, Any]:
    size = image_size(data)
    if size is None:
        return {"form": "bytes", "bytes": len(data)}
    return {"form": "image", "bytes": len(data), "drawable": size.pixels <= MOST_PIXELS, **size.view()}


def _short(value: Any, limit: int | None) -> Any:
    if isinstance(value, dict) and value.get("type") == "bytes" and value.keys() == {"type", "data"}:  # as base64
        return f"{len(value['data']) * 3 // 4:,} bytes"
    if isinstance(value, str):
        return value[:limit]
    if isinstance(value, dict):
        return {name: _short(inner, limit) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner, limit) for inner in value[: None if limit is None else LISTED]]
    return value


def in_full(kept: KeptInputs, value: Input | None) -> dict[str, Any]:
    """Return an input in full, in the form of `shown`. A missing blob has the form "gone" and a reason."""
    if not isinstance(value, BlobInput):
        return shown(value, limit=None)
    try:
        return shown(kept.carried(value), limit=None)
    except ArgosyError as error:
        return {"form": "gone", "reason": str(error)}
