"""The marks by which an idempotency key recognises its submission: the tasks with their parameters, and the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from producers.client.request import Request
from producers.wire.messages import Item

# sorted names, so that the order of parameters and columns does not matter
_json = msgspec.json.Encoder(order="deterministic")
_msgpack = msgspec.msgpack.Encoder(order="deterministic")


def request_text(request: Request) -> str:
    """Return the tasks and parameters of a submission as JSON, the same for the same request."""
    return _json.encode({"tasks": sorted(request.names), "params": request.params}).decode()


def request_difference(kept: str, own: str) -> str | None:
    """Return the difference between two texts of `request_text` in words, or None."""
    if kept == own:
        return None
    was, here = msgspec.json.decode(kept), msgspec.json.decode(own)
    if was["tasks"] != here["tasks"]:
        return f"its tasks are {', '.join(was['tasks'])}, here they are {', '.join(here['tasks'])}"
    names = sorted(
        f"{task}.{name}"
        for task in {**was["params"], **here["params"]}
        for name in _changed(was["params"].get(task, {}), here["params"].get(task, {}))
    )
    return f"its tasks are the same ({', '.join(here['tasks'])}), its parameters are not ({', '.join(names)})"


def _changed(was: dict[str, Any], here: dict[str, Any]) -> list[str]:
    absent = object()
    return [name for name in {**was, **here} if was.get(name, absent) != here.get(name, absent)]


class Fingerprint:
    """A digest of items in their order, however they are divided into chunks."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, items: Iterable[Item]) -> None:
        for item in items:
            self._digest.update(_msgpack.encode((item.seq, item.input, item.params, item.key)))

    def copy(self) -> Fingerprint:
        own = Fingerprint()
        own._digest = self._digest.copy()
        return own

    def text(self, rows: int) -> str:
        """Return the fingerprint of a job with this number of rows, as the store keeps it."""
        return f"{rows}:{self._digest.hexdigest()}"
