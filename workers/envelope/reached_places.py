"""The places of an envelope's inputs that are away: a host that does not answer costs its envelope one wait, not 64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from producers.wire.errors import InputUnavailable
from producers.wire.messages import BlobInput, Input, TextAndImageInput, UrlInput


class ReachedPlaces:
    """The hosts and storages that an envelope reads. Used by one thread."""

    def __init__(self) -> None:
        self._away: dict[str, InputUnavailable] = {}

    @contextmanager
    def reading(self, value: Input) -> Iterator[None]:
        """Read an input inside. If its place was away before, raise the same InputUnavailable at once."""
        place = _place(value)
        if place in self._away:
            raise copy.copy(self._away[place])
        try:
            yield
        except InputUnavailable as error:
            if place and error.whole_place:
                self._away[place] = error
            raise


def _place(value: Input) -> str:
    """Return the place of an input that is read from elsewhere, or an empty text."""
    if isinstance(value, TextAndImageInput):
        return _place(value.image)
    if isinstance(value, UrlInput):
        try:
            return urlsplit(value.url).netloc.lower()
        except ValueError:  # no URL, which is refused where it is read
            return ""
    return "blob storage" if isinstance(value, BlobInput) else ""
