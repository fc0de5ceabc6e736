"""Old names go on for one release: each is accepted, stands for the very same thing, and the warning names the new
form.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import producers
import results_store
import workers
from workers.models.interface import class_lookup

MOVED = {**producers._MOVED, **workers._MOVED, **results_store._MOVED}


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_module_has_a_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)  # tests come in any order: another one imports it
    with pytest.warns(FutureWarning, match=f"^{old} is now {MOVED[old]};"):
        assert importlib.util.find_spec(old) is not None
    assert importlib.util.find_spec(MOVED[old]) is not None


def test_a_class_is_the_same_under_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's `except InvalidInput` would not catch the error of a copy."""
    monkeypatch.delitem(sys.modules, "producers.errors", raising=False)
    from producers.wire import errors

    with pytest.warns(FutureWarning, match="producers.errors is now producers.wire.errors"):
        old = importlib.import_module("producers.errors")
    assert old.InvalidInput is errors.InvalidInput
    assert errors.__spec__.name == "producers.wire.errors"


def test_an_old_command_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "producers.cli", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage: argosy" in ran.stdout
    assert "FutureWarning: producers.cli is now producers.commands.main" in ran.stderr


@pytest.mark.parametrize(("old", "short"), sorted(class_lookup._OLD_NAMES.items()))
def test_an_old_class_of_fleet_toml(old: str, short: str) -> None:
    with pytest.warns(FutureWarning, match=f'class = "{old}" is now class = "{short}"'):
        assert class_lookup.find(old) is class_lookup.find(short)
