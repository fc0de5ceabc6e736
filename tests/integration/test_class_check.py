"""`argosy models check` and `argosy doctor`: a class of one's own is tried on samples before a worker starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from producers.commands.main import main
from workers.fleet import doctor

MODULE = """
import os
import sys

import numpy as np

from tests.wrong_class import Wrong
from workers.models.interface.model import Model, Prepared


class Unwritten(Model):
    pass


class Neighbours(Wrong):
    def forward(self, arrays, wanted):
        arrays["number"] = arrays["number"] - arrays["number"].mean(axis=0) * np.array([1, 0])
        return super().forward(arrays, wanted)


class Digest(Wrong):
    def prepare(self, content, params):
        row = super().prepare(content, params)
        return Prepared(row.arrays, 1, b"the same")


class Unloadable(Wrong):
    def load(self, device):
        raise OSError("no such weights")


class Deadly(Wrong):
    def load(self, device):
        os._exit(7)


class Sampleless(Wrong):
    def samples(self, count):
        return Model.samples(self, count)


class Infinite(Wrong):
    def finish(self, task, output, params, prepared):
        return {"twice": float("inf") if output[0] == 4 else float(output[0])}


class Numbered(Wrong):
    revision = 5


class Schemaless(Wrong):
    input_type = np.ndarray
"""

LOADS = "the device process ended with exit code 7"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path of this process and of those that it starts."""
    (tmp_path / "checked_by_a_test.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "exits_for_a_test.py").write_text("import sys\n\nsys.exit('not today')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.delitem(sys.modules, "checked_by_a_test", raising=False)
    monkeypatch.delenv("ARGOSY_FLEET", raising=False)
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", "check", *arguments])


def test_a_right_class_is_right(module: Path) -> None:
    found = check("tests.wrong_class:Wrong", "--kind", "custom")
    assert found.output == "tests.wrong_class:Wrong: its samples have the same answers alone and together\n"
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("class_", "problem"),
    [
        ("checked_by_a_test:Unwritten", "models.Unwritten.class: checked_by_a_test:Unwritten: TypeError: Can't inst"),
        ("checked_by_a_test:Absent", "no attribute 'Absent'"),
        ("exits_for_a_test:Class", "models.Class.class: exits_for_a_test:Class: SystemExit: not today"),
        ("checked_by_a_test:Schemaless", "`input_type` and `output_type` must be types that msgspec knows"),
        ("checked_by_a_test:Numbered", "models.Numbered: Numbered.revision is 5; give it a text"),
        ("checked_by_a_test:Sampleless", "there are no samples of the form 'json'; override `samples`"),
        ("checked_by_a_test:Unloadable", "model Unloadable cannot be loaded: OSError: no such weights"),
        ("checked_by_a_test:Deadly", f"while model Deadly was loaded, {LOADS}"),
        ("checked_by_a_test:Neighbours", "Neighbours: sample 0 of Neighbours has two answers, alone {'twice': 0.0}"),
        ("checked_by_a_test:Digest", "Digest.prepare returned equal `content` for different rows"),
        ("checked_by_a_test:Infinite", "Infinite.finish returned for Infinite an answer in which twice is inf"),
    ],
)
def test_a_wrong_class_is_named(module: Path, class_: str, problem: str) -> None:
    found = check(class_, "--kind", "custom")
    assert problem in found.output
    assert found.exit_code == 1
    assert "Traceback" not in found.output


def test_the_class_or_the_option_says_the_kind(module: Path) -> None:
    assert "names no `kind`; give the kind of its task by --kind" in check("tests.wrong_class:Wrong").output
    assert "no kind 'costum'; did you mean 'custom'?" in check("tests.wrong_class:Wrong", "--kind", "costum").output


def test_doctor_tries_the_files_own_classes(module: Path) -> None:
    file = module / "fleet.toml"
    text = """
[worker]
models = ["own", "lost"]
[models.own]
class = "checked_by_a_test:Infinite"
tasks = { task = "custom" }
[models.lost]
class = "tests.wrong_class:Wrong"
source = { path = "weights" }
tasks = { other = "custom" }
"""
    file.write_text(text, encoding="utf-8")
    found = {one.about: one for one in doctor.examine(file)}
    assert (
        "Infinite.finish returned for task an answer in which twice is inf"
        in (own := found["class checked_by_a_test:Infinite"]).found
    )
    assert own.remedy == "mend it; argosy models check own"
    assert f"{module / 'weights'}: no such folder" in found["model lost"].found
