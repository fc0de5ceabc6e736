"""The models in a device process: loaded at its start or while others run, unloaded between two batches.

A later model is loaded in its own thread, so that the batches of the others go on. It counts as loaded from the frame
by which that thread reports it, between two batches. Only the serving thread changes the set of models, and only it
answers the parent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.device import device_memory, libraries
from workers.device.shared_state import restored
from workers.device.transfer import Header
from workers.models.interface.model import Model

logger = logging.getLogger(__name__)

#: The frames for this module: requests of the parent, and reports of a loading thread.
_LOAD, _UNLOAD, _CAME = "load", "unload", "came"


class LoadFailed(Exception):
    """The model of this key cannot be loaded; the cause says why."""


@dataclass(slots=True)
class LoadedModels:
    """`build` makes a model of the parent's description, `described` describes an error, `tell` puts a frame before the
    serving thread.

    With `measuring`, freed memory is returned before and after a model is loaded, so that the growth is the model's;
    that takes a tenth of a second.
    """

    device: str
    build: Callable[[Any], Model]
    described: Callable[[BaseException], Header]
    tell: Callable[[Header], None]
    measuring: bool = False
    models: dict[str, Model] = field(default_factory=dict)
    _arrived: dict[str, Model] = field(default_factory=dict)

    def load_all(self, wanted: Mapping[str, Any], on_begin: Callable[[str], object]) -> None:
        """Load the models of the start, one by one. Raises LoadFailed from any error of a model's loading."""
        if self.measuring:
            device_memory.import_libraries()
        for key, raw in wanted.items():
            on_begin(key)
            try:
                self.models[key], _ = self._load(key, raw)
            except BaseException as error:  # SystemExit, too
                raise LoadFailed(key) from error

    def held(self) -> Header:
        """The bytes held by the process now, where they are measured."""
        return {"resident_bytes": device_memory.resident_bytes(self.device)} if self.measuring else {}

    def takes(self, header: Header) -> bool:
        return any(word in header for word in (_LOAD, _UNLOAD, _CAME))

    def take(self, header: Header) -> Header | None:
        """Handle a frame; return the answer for the parent, if there is one yet."""
        if _LOAD in header:
            return self._begin(header[_LOAD], header["model"])
        if _UNLOAD in header:
            return self._unload(header[_UNLOAD])
        key, said = header[_CAME], header["said"]
        if key in self._arrived:
            self.models[key] = self._arrived.pop(key)
        told = {"resident_bytes": device_memory.resident_bytes(self.device), "libraries": libraries.imported()}
        return {**said, **told}

    def _begin(self, key: str, raw: Any) -> Header | None:
        loading = threading.Thread(target=self._load_beside, args=(key, raw), name=f"argosy load {key}", daemon=True)
        try:
            loading.start()
        except RuntimeError as error:  # the system gives no thread
            return {"event": "unloadable", "model": key, **self.described(error)}
        return None

    def _load_beside(self, key: str, raw: Any) -> None:
        try:
            self._arrived[key], figures = self._load(key, raw)
            said: Header = {"event": "loaded", "model": key, **figures}
        except BaseException as error:  # noqa: BLE001 - SystemExit, too: a thread that ends without a word is waited for
            said = {"event": "unloadable", "model": key, **self.described(error)}
            device_memory.give_back(self.device)
        self.tell({_CAME: key, "said": said})

    def _load(self, key: str, raw: Any) -> tuple[Model, Header]:
        if self.measuring:
            device_memory.give_back(self.device)
        before, started = device_memory.resident_bytes(self.device), time.perf_counter()
        model = self.build(raw)
        with restored(model, "load"):
            model.load(self.device)
            model.try_out()
        load_s = time.perf_counter() - started
        if self.measuring:
            device_memory.give_back(self.device)
        grown_bytes = max(0, device_memory.resident_bytes(self.device) - before)
        logger.info("model %s on %s in %.1f s, %d MB", key, self.device, load_s, grown_bytes // 10**6)
        return model, {"load_s": load_s, "grown_bytes": grown_bytes}

    def _unload(self, key: str) -> Header:
        self.models.pop(key, None)
        device_memory.give_back(self.device)
        held = device_memory.resident_bytes(self.device)
        logger.info("model %s is unloaded, %d MB are held", key, held // 10**6)
        return {"event": "unloaded", "model": key, "resident_bytes": held}
