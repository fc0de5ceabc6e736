"""Which models can be explained, and how."""

from __future__ import annotations

from typing import Any

from workers.models.explaining.images import FolderImages, OwnImages
from workers.models.explaining.subject import Subject
from workers.models.explaining.texts import FolderTexts, OwnTexts
from workers.models.huggingface.encoder import EncoderModel
from workers.models.huggingface.vision import ImageModel
from workers.models.model import Model
from workers.models.text import TextModel
from workers.models.vision import VisionModel

_SUBJECTS: tuple[tuple[type[Model], type[Subject[Any]]], ...] = (
    (TextModel, OwnTexts),
    (VisionModel, OwnImages),
    (EncoderModel, FolderTexts),
    (ImageModel, FolderImages),
)


def of(model: Model) -> Subject[Any] | None:
    """Return what explains a model, or None for one that cannot be explained, or has no task for it."""
    found = next((subject for kind, subject in _SUBJECTS if isinstance(model, kind)), None)
    if found is None:
        return None
    subject = found(model)
    return subject if subject.tasks else None
