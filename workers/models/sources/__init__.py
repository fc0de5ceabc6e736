"""Where a model's files come from, and the folder where they are kept."""

from __future__ import annotations

from workers.models.sources.model_source import cache_folder

__all__ = ["cache_folder"]
