"""Labels of pictures, clips and recordings, by the heads of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from producers.wire.errors import InvalidInput
from workers.training.kinds.label_kinds import ClassificationKind


class MediaKind(ClassificationKind):
    """The base of the three: exactly one label applies to a file.

    The column has a path, which counts from the rows' own file, or the file's bytes, as Hugging Face's data sets have.
    """

    heads: ClassVar[tuple[str, ...]] = ("transformers",)
    one_input = True

    def located(self, row: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        value = row.get(self.columns[0])
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value.strip() and "://" not in value:
            value = str(folder / Path(value).expanduser())
        return {**row, self.columns[0]: value}

    def identity(self, cell: Any) -> str:
        """Return a digest of bytes, or a path's last two parts: the parts of the rows must not change with a move."""
        if isinstance(cell, bytes):
            return hashlib.blake2b(cell, digest_size=16).hexdigest()
        return "/".join(Path(str(cell)).parts[-2:])

    def content(self, row: Mapping[str, Any], origin: str) -> bytes:
        value = row.get(self.columns[0])
        where = f"{origin}: {self.columns[0]}"
        if isinstance(value, bytes):
            return value
        if value is None or not isinstance(value, str):
            problem, there = f"has no {self.columns[0]!r}", ", ".join(row)
            raise InvalidInput(origin, problem, f"name the column in {self.where}.input; columns here: {there}")
        if "://" in value:
            raise InvalidInput(where, f"is {value}, which a training does not fetch", "download the files first")
        try:
            return Path(value).read_bytes()
        except OSError as error:
            raise InvalidInput(
                where, f"is {value}, which cannot be read: {error.strerror}", "check the path"
            ) from error


class ImageClassificationKind(MediaKind):
    """Pictures."""

    modality = "image"
    served = "image-classification"
    input_columns = ("image",)


class VideoClassificationKind(MediaKind):
    """Clips."""

    modality = "video"
    served = "video-classification"
    input_columns = ("video",)


class AudioClassificationKind(MediaKind):
    """Recordings of speech or other sounds."""

    modality = "audio"
    served = "audio-classification"
    input_columns = ("audio",)
