"""Benchmarks run: a claim whose measurement no longer starts is a claim that nobody can check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)

#: The benchmark whose smallest run needs least; the others are for `make test-benchmarks`.
SHORT = ("import_time",)

#: Benchmarks that measure something else with an option.
WITH_OPTIONS = ("interactive --fast",)


def assert_is_a_result(result: dict[str, object], name: str) -> None:
    """What benchmarks/README.md promises of a last line."""
    assert set(result) == {"benchmark", "figures", "machine", "versions", "date"}
    assert result["benchmark"] == name
    assert isinstance(result["figures"], dict)
    assert result["figures"]
    assert isinstance(result["machine"], dict)
    assert {"cpu", "cores", "memory_gib", "gpus", "system"} <= set(result["machine"])
    assert isinstance(result["versions"], dict)
    assert {"python", "argosy", "commit"} <= set(result["versions"])
    assert datetime.fromisoformat(str(result["date"])).tzinfo is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "given",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.benchmarks) for name in (*NAMES, *WITH_OPTIONS)],
)
def test_a_smoke_run_ends_with_its_result(given: str, tmp_path: Path, pulled_models: object) -> None:
    """As a reader of the README would run it, with a home and a temp folder of its own, which it leaves as they
    were.
    """
    if given == "edge" and (os.geteuid() or not Path("/dev/net/tun").exists()):
        pytest.skip("a network namespace and TUN devices need root")
    environment = {key: value for key, value in os.environ.items() if key != "ARGOSY_FLEET"}
    environment["ARGOSY_HOME"] = str(tmp_path / "home")
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "torch")  # torch's own cache, made by importing it
    name, *options = given.split()
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *options]
    with tempfile.TemporaryDirectory(prefix="argosy-") as own:  # short: PostgreSQL's socket lies in it
        environment["TMPDIR"] = own
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-4000:]
        assert not list(Path(own).iterdir())
    assert_is_a_result(json.loads(ran.stdout.splitlines()[-1]), name)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_result_says_where_it_comes_from(path: Path) -> None:
    """Figures without machine, versions and date are hearsay; so are those of a benchmark that is gone."""
    result = json.loads(path.read_text(encoding="utf-8"))
    name = result["benchmark"]
    assert name in NAMES
    assert path.stem == name or path.stem.startswith(f"{name}-")
    assert_is_a_result(result, name)


def test_every_benchmark_is_listed() -> None:
    """The table in benchmarks/README.md is where a reader looks for the question behind a figure."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in readme] == []
