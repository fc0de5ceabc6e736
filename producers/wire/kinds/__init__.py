"""The kinds of tasks, a module per modality. A new kind needs an entry in its module's table, and a model."""

from __future__ import annotations

from collections.abc import Mapping

from producers.wire.kinds.audio import AUDIO_KINDS
from producers.wire.kinds.custom import CUSTOM_KINDS
from producers.wire.kinds.generation import GENERATION_KINDS
from producers.wire.kinds.kind import Kind
from producers.wire.kinds.multimodal import MULTIMODAL_KINDS
from producers.wire.kinds.pictures import PICTURE_KINDS
from producers.wire.kinds.retrieval import RETRIEVAL_KINDS
from producers.wire.kinds.series import SERIES_KINDS
from producers.wire.kinds.tabular import TABULAR_KINDS
from producers.wire.kinds.text import TEXT_KINDS
from producers.wire.kinds.video import VIDEO_KINDS
from producers.wire.kinds.vision import VISION_KINDS

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
        *CUSTOM_KINDS,
    )
}

__all__ = ["KINDS", "Kind"]
