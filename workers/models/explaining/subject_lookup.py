"""The models that can be explained, and their `Subject` classes."""

from __future__ import annotations

from typing import Any

from workers.models.built_in.text.text_model import TextModel
from workers.models.built_in.vision.vision_model import VisionModel
from workers.models.explaining.explained_images import FolderImages, OwnImages
from workers.models.explaining.explained_texts import FolderTexts, OwnTexts
from workers.models.explaining.subject import Subject
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.vision.image_models import ImageModel
from workers.models.interface.model import Model

_SUBJECTS: tuple[tuple[type[Model], type[Subject[Any]]], ...] = (
    (TextModel, OwnTexts),
    (VisionModel, OwnImages),
    (EncoderModel, FolderTexts),
    (ImageModel, FolderImages),
)


def of(model: Model) -> Subject[Any] | None:
    """Return a model's `Subject`, or None if the model or all of its tasks cannot be explained."""
    found = next((subject for kind, subject in _SUBJECTS if isinstance(model, kind)), None)
    if found is None or model.reference.name != "torch":  # an ONNX file has no gradients
        return None
    subject = found(model)
    return subject if subject.tasks else None
