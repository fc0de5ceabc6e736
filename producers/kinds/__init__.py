"""The kinds of tasks, one module a modality. A new kind is one entry in its module's table, and a model that serves it."""

from __future__ import annotations

from collections.abc import Mapping

from producers.kinds.audio import AUDIO_KINDS
from producers.kinds.generation import GENERATION_KINDS
from producers.kinds.kind import Kind
from producers.kinds.multimodal import MULTIMODAL_KINDS
from producers.kinds.pictures import PICTURE_KINDS
from producers.kinds.retrieval import RETRIEVAL_KINDS
from producers.kinds.series import SERIES_KINDS
from producers.kinds.tabular import TABULAR_KINDS
from producers.kinds.text import TEXT_KINDS
from producers.kinds.video import VIDEO_KINDS
from producers.kinds.vision import VISION_KINDS

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        *TEXT_KINDS,
        *GENERATION_KINDS,
        *RETRIEVAL_KINDS,
        *VISION_KINDS,
        *PICTURE_KINDS,
        *AUDIO_KINDS,
        *VIDEO_KINDS,
        *TABULAR_KINDS,
        *SERIES_KINDS,
        *MULTIMODAL_KINDS,
    )
}

__all__ = ["KINDS", "Kind"]
