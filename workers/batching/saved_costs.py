"""Learned costs and footprints of models, saved in the cache folder from one run to the next.

Each device has a small JSON file, with an entry per model, keyed by its revision (which names its backend) and the
device's threads. Entries of other circumstances are not used; an unreadable file counts as empty.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from producers.wire.atomic_files import atomically
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.residence import Footprint

logger = logging.getLogger(__name__)

#: A file holds at most this many entries; the oldest are dropped first.
MOST_ENTRIES = 64


class _Entries:
    """A file of entries, shared by several workers."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing, or of another form
            return {}
        return found if isinstance(found, dict) else {}

    def keep(self, own: Mapping[str, Any]) -> None:
        """Write entries beside those of other workers. A failing disk is logged."""
        if not own:
            return
        others = {key: entry for key, entry in self.read().items() if key not in own}
        entries = dict([*others.items(), *own.items()][-MOST_ENTRIES:])
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomically(self._file) as part:
                part.write_text(json.dumps(entries), encoding="utf-8")
        except OSError as error:
            logger.warning("what was learned is not kept: %s", error)


class SavedCosts:
    """`revisions` are those of the models served here; `circumstances` are the other conditions of their times."""

    def __init__(self, file: Path, revisions: Mapping[str, str], circumstances: str) -> None:
        self._entries = _Entries(file)
        self._circumstances = circumstances
        self._keys: dict[str, str] = {}
        for name, revision in revisions.items():
            self.follow(name, name, revision)

    def follow(self, key: str, name: str, revision: str) -> None:
        """Save the costs learned under `key` for one more model, or for another version."""
        self._keys[key] = f"{name}@{revision} on {self._circumstances}"

    def read(self) -> CostModel:
        """Return the saved costs of the models served here."""
        entries = self._entries.read()
        found = {name: entries[key] for name, key in self._keys.items() if key in entries}
        try:
            return CostModel(found)
        except (TypeError, ValueError, KeyError) as error:
            logger.warning("%s: %s; batches' times are learned anew", self._entries, error)
            return CostModel()

    def write(self, costs: CostModel) -> None:
        """Save the costs."""
        learned, keys = costs.learned(), dict(self._keys)
        self._entries.keep({keys[name]: sums for name, sums in learned.items() if name in keys})


class SavedFootprints:
    """The measured memory and loading time of models on one device."""

    def __init__(self, file: Path) -> None:
        self._entries = _Entries(file)
        self._keys: dict[str, str] = {}

    def of(self, key: str, name: str, revision: str, folder: Path) -> Footprint:
        """Return the footprint of a version, and save under `key` from now on.

        The estimate for a version that was never loaded here is the size of its weight files.
        """
        self._keys[key] = f"{name}@{revision}"
        try:
            kept = self._entries.read()[self._keys[key]]
            return Footprint(int(kept["bytes"]), float(kept["load_s"]))
        except (KeyError, TypeError, ValueError):
            files = folder.glob("*.safetensors")
            return Footprint(sum(file.stat().st_size for file in files), measured=False)

    def write(self, measured: Mapping[str, Footprint]) -> None:
        """Save the footprints."""
        keys = dict(self._keys)
        own = {keys[key]: {"bytes": one.bytes, "load_s": one.load_s} for key, one in measured.items() if key in keys}
        self._entries.keep(own)
