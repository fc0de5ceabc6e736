"""The models of one device: their versions, the loaded ones, and those about to be loaded or unloaded.

Every version of a model has its own *key* and counts as a separate model in all of batching, so that items prepared for
one version meet neither rows nor cached features of another. An *admitted* version is loaded beside the others but not
used yet. A *retired* version gets no more items, and is unloaded once the device has finished its batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from producers.wire.errors import ConfigurationError
from workers.batching.planning.policy import Budget
from workers.batching.planning.residence import Footprint, Load, Need, Residence, Unload
from workers.batching.steady_clock import steady_time
from workers.device.device_client import DeviceClient
from workers.device.device_process import ModelToLoad
from workers.device.transfer import Header
from workers.models.interface import returned
from workers.models.interface.model import Model

logger = logging.getLogger(__name__)

#: A model cannot be loaded if the process ended this many times in a row while loading it.
MOST_DEATHS = 2


class CannotLoad(ConfigurationError):
    """A model cannot be loaded; `str()` says why."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model for the batcher: its parent side, its revision, its budget. `generation` counts its versions here."""

    model: Model
    revision: str
    budget: Budget
    generation: int = 0

    @property
    def name(self) -> str:
        return self.model.spec.name

    @property
    def precision(self) -> str | None:
        """The precision of the model's passes, or None if a class of the user's own decides it."""
        decides = not self.model.backends and returned.is_own(self.model)
        return None if decides else self.model.spec.backend.precision

    @property
    def key(self) -> str:
        """The key of this version, between the batcher and the device."""
        return f"{self.name}#{self.generation}" if self.generation else self.name


class Roster:
    """Owned by the batcher's thread, from `start` on. The futures of `admit` and `retire` are set there."""

    def __init__(self, served: Mapping[str, ServedModel], residence: Residence) -> None:
        self.residence = residence
        self.loading_since = 0.0  # monotonic
        self._served = dict(served)
        self._admitted: dict[str, Future[None]] = {}
        self._retired: dict[str, Future[None]] = {}
        self._reported_loads = 0
        self._device: DeviceClient

    def __getitem__(self, key: str) -> ServedModel:
        return self._served[key]

    def takes(self, key: str) -> bool:
        """Whether a model accepts new items."""
        return key in self._served and key not in self._retired

    def newest(self, name: str) -> str | None:
        """Return the key of a model's newest version."""
        own = [(served.generation, key) for key, served in self._served.items() if served.name == name]
        return max(own)[1] if own else None

    # --- versions ---

    def admit(self, served: ServedModel, wanted: ModelToLoad, footprint: Footprint, done: Future[None]) -> None:
        """Load a version. `done` raises CannotLoad if that fails."""
        self._device.offer(served.key, wanted)
        self._served[served.key] = served
        self._admitted[served.key] = done
        self.residence.add(served.key, footprint, asked_for=True)

    def retire(self, key: str, done: Future[None]) -> None:
        """Unload a version once nothing runs on it."""
        self._retired[key] = done
        self.residence.retire(key)

    # --- the device ---

    def start(self, device: DeviceClient) -> None:
        """Start the device, or start it again."""
        self._device = device
        device.start(self.residence.at_start())

    def came_up(self, header: Header) -> None:
        self.residence.came_up(time.monotonic(), header.get("resident_bytes", 0))
        self._reported_loads = self.residence.loads

    def grew(self, header: Header) -> None:
        """Record the size of the process after a batch."""
        if "resident_bytes" in header:
            self.residence.resident_bytes = header["resident_bytes"]

    def lost(self, hung: str = "") -> str | None:
        """Record the end of the process; return the reason if the models can no longer be served.

        `hung` says that it ended because the loading took too long: for a version that is new, that is once too often.
        """
        loading = self.residence.lost(time.monotonic())
        if loading is None:
            return None
        key, deaths = loading
        if hung and key in self._admitted:
            return self.cannot_load(key, hung)
        if deaths < MOST_DEATHS:
            return None
        return self.cannot_load(key, f"the device process ended {deaths} times while loading it")

    def on_event(self, header: Header) -> str | None:
        """Handle an event of a model; return the reason if the models can no longer be served."""
        key, now = header["model"], time.monotonic()
        if header["event"] == "unloaded":
            self.residence.went(key, header["resident_bytes"], now)
            return None
        if header["event"] == "unloadable":
            return self.cannot_load(key, f"{header['kind']}: {header['message']}")
        first = self.residence.is_asked_for(key)
        self.residence.came(key, header["grown_bytes"], header["load_s"], header["resident_bytes"], now)
        if first and self.residence.too_large() == key:
            return self.cannot_load(key, self._too_large(key))
        if done := self._admitted.pop(key, None):
            done.set_result(None)
        return None

    def cannot_load(self, key: str, reason: str) -> str | None:
        """Give up an admitted version; for a version that is served already, return the reason."""
        name = self._served[key].name
        done = self._admitted.pop(key, None)
        if done is None:
            return f"model {name} cannot be loaded: {reason}"
        if key in self.residence.loaded:  # it is loaded, and too large
            self.retire(key, Future())
        else:
            self._forget(key)
        done.set_exception(CannotLoad(f"model {name}: {reason}"))
        return None

    def too_large(self) -> str | None:
        """Return the reason if the models cannot be served within the budget, as far as is known before loading."""
        key = self.residence.too_large()
        return None if key is None else f"model {self._served[key].name}: {self._too_large(key)}"

    def _too_large(self, key: str) -> str:
        took = self.residence.alone_bytes(key) / 10**6
        return (
            f"with it alone the device process takes {took:,.0f} MB, over worker.memory_budget, "
            f"{self.residence.budget_bytes / 10**6:,.0f} MB; raise that, or leave the model out of worker.models"
        )

    def move(self, needs: Mapping[str, Need], busy: Collection[str]) -> None:
        """Load and unload models as needed now."""
        move = self.residence.next(needs, busy, time.monotonic(), steady_time())
        if isinstance(move, Load):
            self.loading_since = time.monotonic()
            self._device.load(move.key)
        elif isinstance(move, Unload):
            self._device.unload(move.key)

    def dismissed(self, needs: Collection[str], busy: Collection[str]) -> list[str]:
        """Return the retired versions that were unloaded for good, and forget them."""
        gone = [key for key in self._retired if key not in self.residence.held and key not in needs and key not in busy]
        for key in gone:
            self._forget(key)
            self._retired.pop(key).set_result(None)
        return gone

    def loads_since_last(self) -> int:
        """The number of models loaded since the last call."""
        new = self.residence.loads - self._reported_loads
        self._reported_loads = self.residence.loads
        return new

    def close(self) -> None:
        """Fail every unfinished load."""
        for done in (*self._admitted.values(), *self._retired.values()):
            done.set_exception(CannotLoad("this worker stops"))
        self._admitted.clear()
        self._retired.clear()

    def _forget(self, key: str) -> None:
        self._device.forget(key)
        self.residence.remove(key)
        del self._served[key]
