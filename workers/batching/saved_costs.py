"""What was learned of models, kept from one run to the next in the cache folder: what their batches take, and what they take of memory.

A small JSON file each a device; in it an entry for each model, by its revision (which names its backend) and the device's
threads. What was learned under other circumstances is not used; what cannot be read is as if nothing had been learned.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.residence import Footprint

logger = logging.getLogger(__name__)

#: Entries kept in a file; the ones written longest ago go first.
MOST_ENTRIES = 64


class _Entries:
    """A file of entries that several workers write."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or not ours
            return {}
        return found if isinstance(found, dict) else {}

    def keep(self, own: Mapping[str, Any]) -> None:
        """Write entries beside what others keep in the file. A disk that refuses is logged."""
        if not own:
            return
        others = {key: entry for key, entry in self.read().items() if key not in own}
        entries = dict([*others.items(), *own.items()][-MOST_ENTRIES:])
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._replace(json.dumps(entries))
        except OSError as error:
            logger.warning("what was learned is not kept: %s", error)

    def _replace(self, text: str) -> None:
        """Put the whole text in the file's place, so that nobody ever reads half of it."""
        handle, name = tempfile.mkstemp(dir=self._file.parent, prefix=self._file.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(name).replace(self._file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class KeptCosts:
    """`revisions` are those of the models served here, `circumstances` what else their times depend on."""

    def __init__(self, file: Path, revisions: Mapping[str, str], circumstances: str) -> None:
        self._entries = _Entries(file)
        self._circumstances = circumstances
        self._keys: dict[str, str] = {}
        for name, revision in revisions.items():
            self.follow(name, name, revision)

    def follow(self, key: str, name: str, revision: str) -> None:
        """Keep what is learned under `key` as that of one more model, or of another version of one."""
        self._keys[key] = f"{name}@{revision} on {self._circumstances}"

    def read(self) -> CostModel:
        """Return what is known of the models served here."""
        entries = self._entries.read()
        found = {name: entries[key] for name, key in self._keys.items() if key in entries}
        try:
            return CostModel(found)
        except (TypeError, ValueError, KeyError) as error:
            logger.warning("%s: %s; batches' times are learned anew", self._entries, error)
            return CostModel()

    def write(self, costs: CostModel) -> None:
        """Keep what is known now."""
        learned, keys = costs.learned(), dict(self._keys)
        self._entries.keep({keys[name]: sums for name, sums in learned.items() if name in keys})


class KeptFootprints:
    """What models were seen to take of one device's memory, and of time to load."""

    def __init__(self, file: Path) -> None:
        self._entries = _Entries(file)
        self._keys: dict[str, str] = {}

    def of(self, key: str, name: str, revision: str, folder: Path) -> Footprint:
        """Return what a version of a model takes, and keep from now on what is learned of it under `key`.

        Where it was never loaded here, it is thought to take what its weights' files do.
        """
        self._keys[key] = f"{name}@{revision}"
        try:
            kept = self._entries.read()[self._keys[key]]
            return Footprint(int(kept["bytes"]), float(kept["load_s"]))
        except (KeyError, TypeError, ValueError):
            files = folder.glob("*.safetensors")
            return Footprint(sum(file.stat().st_size for file in files), measured=False)

    def write(self, measured: Mapping[str, Footprint]) -> None:
        """Keep what is known now."""
        keys = dict(self._keys)
        own = {keys[key]: {"bytes": one.bytes, "load_s": one.load_s} for key, one in measured.items() if key in keys}
        self._entries.keep(own)
