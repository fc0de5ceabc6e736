"""Turn rows into items: text as it is; images and clips as bytes, paths or URLs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from producers.client.request import NewItem
from producers.sources.detection import BROKEN
from producers.sources.places import LocalFile, Place, RemoteFile
from producers.wire.catalogue import Limits
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import PathInput, UrlInput

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

    def item(self, record: Record) -> Row:
        """Return the record's item, or an InvalidInput if its file cannot be read."""
        value, key, origin = record.value, record.key, record.origin
        if self.modality == "text-and-image" and isinstance(value, dict) and "image" in value:
            return self._with_image(record, value)
        if (
            self.modality in MEDIA_SUFFIXES and isinstance(value, dict) and value.keys() <= {"bytes", "path"}
        ):  # as Hugging Face's data sets store media
            value = value.get("bytes") or value.get("path")
        if isinstance(value, LocalFile | RemoteFile):
            return self._file(value, key, origin)
        if self.modality not in MEDIA_SUFFIXES or not isinstance(value, str) or not value.strip():
            return NewItem(value, key, origin=origin)
        if value.startswith(("http://", "https://")):
            return NewItem(UrlInput(value), key, origin=origin)
        try:
            return self._file(record.place.beside(value), key, origin)
        except InvalidInput as error:
            return InvalidInput(origin, f"{error.field} {error.problem}", error.remedy)

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
                return InvalidInput(origin, f"{file.name} is not a file", "check the path")
            most = self.limits.max_input_bytes
            size = file.size()
            if size <= most:  # else it may be a film, and is not read
                with file.open() as opened:
                    content = opened.read(most + 1)
                if len(content) <= most:
                    return NewItem(content, key, origin=origin)
                size = most + 1
        except (OSError, *BROKEN) as error:
            what = getattr(error, "strerror", None) or str(error)
            return InvalidInput(origin, f"{file.name} cannot be read: {what}", "check the path")
        except Exception as error:  # noqa: BLE001 - each remote file system has errors of its own
            return InvalidInput(origin, f"{file.name} cannot be read: {error}", "check the path")
        problem = f"{Path(file.name).name} has {size:,} bytes, over {most:,}"
        return InputTooLarge(origin, problem, "make it smaller, or send its path with --paths")
