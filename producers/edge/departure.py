"""The gate: all that is sent to the centre is made here. A marked input does not pass.

The mark is read from the stored item itself, not from the spool's row. The input and the task's parameters
leave: no key of the submitter, no digest, no name of the site's jobs.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from producers.edge.cascade import stays
from producers.edge.smaller_pictures import smaller
from producers.wire.edge.cascade_tasks import STAY
from producers.wire.edge.edge_settings import EdgeTask
from producers.wire.errors import ArgosyError
from producers.wire.messages import InlineBytes, Input, Item, PathInput, RowInput, SeriesInput, UrlInput

_GATE: Final = object()


class StaysOnSite(ArgosyError):
    """The item is marked: it must not leave the site."""


class NotSendable(ArgosyError):
    """The item's input cannot be sent to the centre."""


@dataclass(frozen=True, slots=True)
class Departing:
    """An item as the centre gets it: JSON. Only `departing` makes it."""

    body: bytes
    passed: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.passed is not _GATE:
            raise StaysOnSite("an item leaves by `departing` alone")


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders from which inputs that are paths may be read, and the most bytes of a file: `[limits]`."""

    folders: tuple[str, ...] = ()
    most_bytes: int = 20 * 1024 * 1024

    def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises NotSendable."""
        found = Path(path).resolve()
        if not any(found.is_relative_to(Path(folder).resolve()) for folder in self.folders):
            raise NotSendable("the input is a path outside limits.allowed_roots")
        try:
            with found.open("rb") as file:
                data = file.read(self.most_bytes + 1)
        except OSError as error:
            raise NotSendable(f"the input is a file that cannot be read: {error.strerror}") from error
        if len(data) > self.most_bytes:
            raise NotSendable("the input is a file over limits.max_input_bytes")
        return data


def departing(item: Item, name: str, task: EdgeTask, roots: Roots) -> Departing:
    """Return an item for the centre, for its task `name`. Raises StaysOnSite or NotSendable."""
    params = item.params.get(name, {})
    if stays(task, params, STAY) or any(own.get(STAY) for own in item.params.values()):
        raise StaysOnSite("the item is marked `stay_on_site`")
    value = _json(item.input, roots, task)
    own = {key: given for key, given in params.items() if key != STAY}
    sent: Any = value if isinstance(value, str) and not own else {"input": value, **({"params": own} if own else {})}
    return Departing(msgspec.json.encode(sent), _GATE)


def _json(given: Input, roots: Roots, task: EdgeTask) -> Any:
    """Return an input in the form of the gateway's API."""
    match given:
        case str():
            return given
        case InlineBytes() | PathInput():
            data = given.data if isinstance(given, InlineBytes) else roots.read(given.path)
            if task.most_side:
                data = smaller(data, task.most_side)
            return {"bytes": base64.b64encode(data).decode()}
        case UrlInput(url):
            return {"url": url}
        case RowInput(values):
            return values
        case SeriesInput(channels, names):
            return dict(zip(names, channels, strict=True)) if names else channels
    fields = msgspec.to_builtins(given)
    if not isinstance(fields, dict) or fields.pop("type", None) not in ("question", "sentences", "messages"):
        raise NotSendable(f"an input of the form {type(given).__name__} is not sent on")
    return fields
