"""Serve any Hugging Face checkpoint that has no `class` in `fleet.toml`: its tasks' kinds choose the class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from producers.wire.errors import ConfigurationError
from workers.models.interface.model import Model, ModelSpec

_ENCODER = "workers.models.huggingface.text.encoder:EncoderModel"
_SEQ2SEQ = "workers.models.huggingface.text.seq2seq:Seq2SeqModel"
_WRITING = "workers.models.generation.generation_model:GenerationModel"
_DIFFUSION = "workers.models.diffusion.diffusion_model:DiffusionModel"
_RESTORATION = "workers.models.huggingface.vision.restoration:RestorationModel"
_IMAGES = "workers.models.huggingface.vision.image_models:ImageModel"
_SOUNDS = "workers.models.speech.classification:AudioModel"
_VIDEOS = "workers.models.huggingface.vision.video_checkpoints:VideoCheckpoint"
_SPEECH = "workers.models.speech.recogniser:recogniser"

#: The class that serves each kind. All tasks of a model must have the same class, because they share its pass.
CLASSES: Mapping[str, str] = {
    "text-classification": _ENCODER,
    "zero-shot-classification": _ENCODER,
    "token-classification": _ENCODER,
    "question-answering": _ENCODER,
    "fill-mask": _ENCODER,
    "feature-extraction": _ENCODER,
    "sentence-similarity": _ENCODER,
    "summarization": _SEQ2SEQ,
    "translation": _SEQ2SEQ,
    "text2text-generation": _SEQ2SEQ,
    "text-generation": _WRITING,
    "prompted-classification": _WRITING,
    "prompted-json": _WRITING,
    "text-to-image": _DIFFUSION,
    "unconditional-image-generation": _DIFFUSION,
    "image-to-image": _RESTORATION,
    "image-classification": _IMAGES,
    "image-feature-extraction": _IMAGES,
    "object-detection": _IMAGES,
    "image-segmentation": _IMAGES,
    "video-classification": _VIDEOS,
    "video-feature-extraction": _VIDEOS,
    "automatic-speech-recognition": _SPEECH,
    "audio-classification": _SOUNDS,
}


def model_for(spec: ModelSpec) -> Model:
    """Return the model that serves the spec's tasks. Raises ConfigurationError unless one class serves all."""
    kinds = {task.kind.name for task in spec.tasks.values()}
    if not kinds:
        raise ConfigurationError(f"models.{spec.name}: has no tasks; add [models.{spec.name}.tasks] with NAME = KIND")
    if unserved := sorted(kinds - set(CLASSES)):
        raise ConfigurationError(
            f"models.{spec.name}: no built-in class serves {unserved[0]}; set `class` (docs/models.md)"
        )
    others = sorted(kind for kind in kinds if CLASSES[kind] not in (_ENCODER, _IMAGES))
    if "onnx" in spec.options and others:
        problem = f"{others[0]} is not served from an ONNX file"
        raise ConfigurationError(f"models.{spec.name}.source.onnx: {problem}; name a folder of torch weights")
    classes = {CLASSES[kind] for kind in kinds}
    if len(classes) > 1:
        remedy = "make them two models with the same source"
        raise ConfigurationError(f"models.{spec.name}: {' and '.join(sorted(kinds))} cannot share a pass; {remedy}")
    module, _, name = classes.pop().partition(":")
    model: Model = getattr(importlib.import_module(module), name)(spec)
    return model
