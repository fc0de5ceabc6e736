"""Turn rows into items: text as it is; images and clips as bytes, paths or URLs."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from producers.client.request import NewItem
from producers.sources.detection import LFS_POINTER
from producers.sources.places import LocalFile, Place, RemoteFile, may_be_beside, outside, told
from producers.wire.catalogue import Limits
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import PathInput, UrlInput
from producers.wire.outside.allowed_places import AllowedPlaces

Row: TypeAlias = NewItem | InvalidInput

#: Suffixes of the files that are read from a folder, by medium.
MEDIA_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": (".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    "audio": (
        *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".bwf", ".caf", ".dts", ".eac3"),
        *(".flac", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".tta"),
        *(".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wv"),
    ),
    "video": (
        *(".3gp", ".apng", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
    ),
}

#: The only column of a folder.
PATH = "path"

#: The most characters of a path in a message: it may be a picture.
MOST_NAMED = 200


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in its source: its columns, its input `value` and its `key`. `place` is its file.

    A row with an `error` may lack all other fields.
    """

    place: Place
    origin: str
    columns: Mapping[str, Any]
    key: str | None = None
    value: Any = None
    error: InvalidInput | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """Makes the items of a submission."""

    modality: str
    limits: Limits
    send_paths: bool
    allowed: AllowedPlaces | None = None

    def item(self, record: Record) -> Row:
        """Return the record's item, or an InvalidInput if its file cannot be read."""
        value, origin = record.value, record.origin
        if self.modality == "text-and-image" and isinstance(value, dict) and "image" in value:
            return self._with_image(record, value)
        try:
            if self.modality in MEDIA_SUFFIXES:
                value = _medium(value, record.place, self.allowed)
            if self.allowed is not None and isinstance(value, LocalFile) and not self.allowed.holds(value.path):
                raise outside(self.allowed, value.name)
        except InvalidInput as error:
            return InvalidInput(origin, f"{_short(error.field)} {error.problem}", error.remedy)
        if isinstance(value, LocalFile | RemoteFile):
            return self._file(value, record.key, origin)
        return NewItem(value, record.key, origin=origin)

    def _with_image(self, record: Record, value: Mapping[str, Any]) -> Row:
        image = replace(self, modality="image").item(replace(record, value=value["image"]))
        if isinstance(image, InvalidInput):
            return image
        return NewItem({**value, "image": image.input}, record.key, origin=record.origin)

    def _file(self, file: Place, key: str | None, origin: str) -> Row:
        if self.send_paths and isinstance(file, LocalFile):
            return NewItem(PathInput(str(file.path.absolute())), key, origin=origin)
        try:
            if isinstance(file, LocalFile) and file.path.exists() and not file.path.is_file():
                return InvalidInput(origin, f"{_short(file.name)} is not a file", "check the path")
            most = self.limits.max_input_bytes
            size = file.size()
            if size <= most:  # else it may be a film, and is not read
                with file.open() as opened:
                    content = opened.read(most + 1)
                if content.startswith(LFS_POINTER):
                    problem = f"{_short(file.name)} is a Git LFS pointer, not the file itself"
                    return InvalidInput(origin, problem, "fetch it: git lfs pull")
                if len(content) <= most:
                    return NewItem(content, key, origin=origin)
                size = most + 1
        except Exception as error:  # noqa: BLE001 - each file system and each packing has errors of its own
            return InvalidInput(origin, f"{_short(file.name)} cannot be read: {told(error)}", "check the path")
        problem = f"{Path(file.name).name} has {size:,} bytes, over {most:,}"
        return InputTooLarge(origin, problem, "make it smaller, or send its path with --paths")


def _medium(value: Any, place: Place, allowed: AllowedPlaces | None) -> Any:
    """Return the bytes, the file or the URL that a row of the file `place` means. Raises InvalidInput."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as Hugging Face's data sets store media
        if isinstance(value.get("bytes"), str):  # in JSON
            return _from_base64("bytes", value["bytes"].encode())
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str) or not value.strip():
        return value
    if value[:5].lower() == "data:":
        kind, _, content = value.partition(",")
        plain = unquote_to_bytes(content)
        return _from_base64(value[:40], plain) if kind.lower().endswith(";base64") else plain
    if value.startswith(("http://", "https://")):
        return UrlInput(value)
    if allowed is not None and not may_be_beside(place, value, allowed):
        raise outside(allowed, value)
    return place.beside(value)


def _from_base64(name: str, packed: bytes) -> bytes:
    try:
        return b64decode(b"".join(packed.split()), validate=True)
    except binascii.Error as error:
        raise InvalidInput(name, f"is not base64: {error}", "write all of it") from error


def _short(name: str) -> str:
    return name if len(name) <= MOST_NAMED else f"{name[:MOST_NAMED]}..."
