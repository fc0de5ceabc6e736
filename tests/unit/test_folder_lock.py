"""The lock of a training's folder, between trainings that come and go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.end_to_end.processes import until
from workers.training.recipes import folder_lock
from workers.training.recipes.folder_lock import FolderInUse, locked


def test_a_training_that_waited_for_a_removed_folder_holds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it was refused, and removed the folder that was still empty; a third must find it held."""
    out = tmp_path / "out"
    monkeypatch.setattr(folder_lock, "_LOOK_EVERY_S", 0.01)

    def second() -> ExitStack:
        with ExitStack() as stack:
            stack.enter_context(locked(out, wait_s=60))
            return stack.pop_all()

    with ThreadPoolExecutor(1) as pool:
        with locked(out):
            held = pool.submit(second)
            until(lambda: opened(out) == 2)
        with held.result(60), pytest.raises(FolderInUse), locked(out):
            pass
    assert not out.exists()


def test_a_training_that_finds_the_folder_held_leaves_it_alone(tmp_path: Path) -> None:
    """It removes no folder in which another has not written yet."""
    out = tmp_path / "out"
    with locked(out):
        with pytest.raises(FolderInUse), locked(out):
            pass
        assert out.is_dir()


def opened(folder: Path) -> int:
    """Return how often this process has a folder open."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += descriptor.readlink() == folder
    return found
