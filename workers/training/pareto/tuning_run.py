"""Measure a model's variants one after the other, keep the results, and find the front and the point to serve.

A run that was interrupted, or whose time was over, goes on with what is left.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from producers.wire.atomic_files import write_json
from producers.wire.errors import ConfigurationError
from workers.batching.serving import tuned_backend
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.training.compressing import compress_rows
from workers.training.pareto.tuned_point import ORIGINAL, Preference, TunedPoint, chosen, front

FILE = "tuned.json"

_MODULE = "workers.training.pareto.measured_points"


class TunedFile(msgspec.Struct, kw_only=True):
    """The file of a run. `runs` are the points by what they depend on; `left` names the runs that the time was too
    short for.
    """

    model: str
    device: str
    rows: str
    most_lost: float
    prefer: Preference
    runs: dict[str, list[TunedPoint]]
    front: list[TunedPoint] = []
    chosen: TunedPoint | None = None
    left: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRun:
    """The variants by name, the original first, and how they are measured. `threads` are the numbers to try (0: all
    cores). `most_lost` is a share of accuracy. `say` is called with a sentence at the start of each measurement.
    """

    variants: Mapping[str, ModelToLoad]
    device: Device
    threads: Sequence[int]
    rows: Path | None
    most_lost: float
    prefer: Preference
    within_s: float | None
    say: Callable[[str], object]

    def measure(self, out: Path) -> TunedFile:
        """Make the measurements that `out` lacks; return its file, with the front and the choice.

        Raises ConfigurationError if nothing runs, and if the time was over before the original was measured.
        """
        ends = None if self.within_s is None else time.monotonic() + self.within_s
        original = self.variants[ORIGINAL]
        found = TunedFile(
            model=original.name,
            device=self.device.name,
            rows=str(self.rows or ""),
            most_lost=self.most_lost,
            prefer=self.prefer,
            runs={},
        )
        out.mkdir(parents=True, exist_ok=True)
        before, rows = _kept(out / FILE), compress_rows.digest(self.rows) if self.rows else ""
        for variant, model in self.variants.items():
            for threads in self.threads:
                key = self._key(model, threads, rows)
                if key in found.runs:  # the same model by another name
                    continue
                if key in before:
                    found.runs[key] = [msgspec.structs.replace(point, variant=variant) for point in before[key]]
                elif not self._measured(found, key, variant, model, threads, ends):
                    found.left.append(f"{variant} with {threads or 'all'} threads")
                _write(out / FILE, found, before)
        points = [point for run in found.runs.values() for point in run]
        if not any(point.variant == ORIGINAL and point.accuracy for point in points):
            raise ConfigurationError(f"models.{original.name}: {self._nothing(points)}")
        found.front, found.chosen = front(points), chosen(points, self.most_lost, self.prefer)
        _write(out / FILE, found, before)
        return found

    def _nothing(self, points: Sequence[TunedPoint]) -> str:
        if not points:
            return f"the time was over before its first measurement ended; allow more than {self.within_s:.0f} s"
        return "; ".join(f"{point.backend}: {point.refused}" for point in points)

    def _measured(
        self, found: TunedFile, key: str, variant: str, model: ModelToLoad, threads: int, ends: float | None
    ) -> bool:
        left_s = None if ends is None else ends - time.monotonic()
        if left_s is not None and left_s <= 0:
            return False
        self.say(f"measuring {variant} with {threads or 'all'} threads on {self.device.name}")
        asked = {"original": self.variants[ORIGINAL], "variant": variant, "cores": threads}
        asked["rows"] = str(self.rows.absolute()) if self.rows else ""
        try:
            found.runs[key] = _points(model, self.device, threads, left_s, asked)
        except TimeoutError:
            return False
        return True

    def _key(self, model: ModelToLoad, threads: int, rows: str) -> str:
        """Return a digest of everything that a run's points depend on; `rows` is that of the rows."""
        models = [tuned_backend.digest(one, self.device) for one in (model, self.variants[ORIGINAL])]
        told = repr((models, str(model.backend), rows, threads))
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _points(
    model: ModelToLoad, device: Device, threads: int, within_s: float | None, asked: Mapping[str, object]
) -> list[TunedPoint]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "points.json"
        tuned_backend.measured_apart(_MODULE, model, device, file, threads=threads, within_s=within_s, **asked)
        return msgspec.json.decode(file.read_bytes(), type=list[TunedPoint])


def _kept(file: Path) -> dict[str, list[TunedPoint]]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=TunedFile).runs
    except (OSError, msgspec.DecodeError):  # missing, or of an older form: measure again
        return {}


def _write(file: Path, found: TunedFile, before: Mapping[str, list[TunedPoint]]) -> None:
    """Write the file, and keep earlier runs of other variants and rows in it."""
    write_json(file, msgspec.structs.replace(found, runs={**before, **found.runs}))
