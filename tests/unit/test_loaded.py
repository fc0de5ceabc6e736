"""A model that comes while others run."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.catalogue import Task
from workers.device.loaded_models import LoadedModels
from workers.device.transfer import Header
from workers.models.interface.model import Array, Arrays, Model, ModelSpec, Prepared


class Comes(Model):
    """Loads, or raises what it is given."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(ModelSpec("comes", Path(), "1", {}))
        self.error = error

    def load(self, device: str) -> None:
        if self.error is not None:
            raise self.error

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        raise NotImplementedError("nothing is computed here")

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        raise NotImplementedError("nothing is computed here")

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        raise NotImplementedError("nothing is computed here")


def told(error: BaseException) -> Header:
    return {"kind": type(error).__name__}


def loading(error: BaseException | None) -> tuple[LoadedModels, Header]:
    """Have a model loaded beside others; return what the parent is told of it."""
    frames: queue.SimpleQueue[Header] = queue.SimpleQueue()
    loaded = LoadedModels("cpu", Comes, told, frames.put)
    assert loaded.take({"load": "comes", "model": error}) is None
    said = loaded.take(frames.get(timeout=30))
    assert said is not None
    return loaded, said


def test_it_is_there_once_the_parent_knows() -> None:
    loaded, said = loading(None)
    assert (said["event"], said["model"], list(loaded.models)) == ("loaded", "comes", ["comes"])
    unloaded = loaded.take({"unload": "comes"})
    assert unloaded is not None
    assert (unloaded["event"], loaded.models) == ("unloaded", {})


@pytest.mark.parametrize("error", [RuntimeError("torn"), MemoryError(), SystemExit(1)])
def test_whatever_its_loading_raises_is_told(error: BaseException) -> None:
    """Libraries may end a process where it is the main thread, or panic in Rust; unsaid, it would be waited for in
    vain.
    """
    loaded, said = loading(error)
    assert (said["event"], said["model"], said["kind"]) == ("unloadable", "comes", type(error).__name__)
    assert not loaded.models
