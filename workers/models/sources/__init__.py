"""The sources of models' files, and the cache folder on this machine."""

from __future__ import annotations

from workers.models.sources.model_source import cache_folder

__all__ = ["cache_folder"]
