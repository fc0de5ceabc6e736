"""The workers of a fleet: they take envelopes from the queues, compute them in micro-batches and store the results."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from results_store import moved

#: Old names that README and docs told to import or to run; see CHANGELOG.
_MOVED = {
    "workers.app": "workers.consumer.app",
    "workers.cli": "workers.commands.main",
    "workers.doctor": "workers.fleet.doctor",
    "workers.models.detector": "workers.models.built_in.vision.detector",
    "workers.models.fused": "workers.models.built_in.fused.fused_model",
    "workers.models.generation.model": "workers.models.generation.generation_model",
    "workers.models.generation.rota": "workers.models.interface.step_rota",
    "workers.models.huggingface.ragged": "workers.models.interface.ragged",
    "workers.models.language": "workers.models.built_in.text.language",
    "workers.models.made": "workers.models.interface.output_files",
    "workers.models.model": "workers.models.interface.model",
    "workers.models.multitask": "workers.models.built_in.multitask.multitask_model",
    "workers.models.options": "workers.models.interface.options",
    "workers.models.progress": "workers.models.sources.download_progress",
    "workers.models.samples": "workers.models.interface.sample_inputs",
    "workers.models.series": "workers.models.built_in.tables.series",
    "workers.models.style": "workers.models.built_in.vision.style_model",
    "workers.models.tabular": "workers.models.built_in.tables.tabular",
    "workers.models.text": "workers.models.built_in.text.text_model",
    "workers.models.video.model": "workers.models.built_in.video.video_model",
    "workers.models.vision": "workers.models.built_in.vision.vision_model",
    "workers.training.entities": "workers.shipped_heads.text.entity_head",
    "workers.training.fused": "workers.shipped_heads.vision.fused_head",
    "workers.training.heads": "workers.shipped_heads.text.text_heads",
    "workers.training.languages": "workers.shipped_heads.text.languages",
    "workers.training.picture_scores": "workers.shipped_heads.vision.picture_scores",
    "workers.training.pictures": "workers.shipped_heads.vision.picture_training",
    "workers.training.series": "workers.training.train_series",
    "workers.training.style": "workers.shipped_heads.vision.style_training",
    "workers.training.tabular": "workers.training.train_tabular",
    "workers.training.translation": "workers.shipped_heads.translation.translation_training",
    "workers.training.translation_scores": "workers.shipped_heads.translation.translation_scores",
    "workers.training.video": "workers.training.train_video",
    "workers.worker": "workers.consumer.worker",
}
moved.accept(_MOVED)


def predictor(model: str, **options: Any) -> Any:
    """Return a class for Ray Data's ``map_batches``: rows computed with a model of a ``fleet.toml``, without a fleet.

    `options` are those of `workers.fleet.predictor.Predictor`, which the class extends (docs/recipes/ray.md).
    """
    base = import_module("workers.fleet.predictor").Predictor  # with the worker's libraries

    def load(self: Any) -> None:
        base.__init__(self, model, **options)

    return type(base.__name__, (base,), {"__init__": load, "__doc__": base.__doc__})
