"""The directions and the lightness that DESIGN promises: who imports whom, and what an import brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]

HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "celery",
    "kombu",
    "numpy",
    "PIL",
    "alembic",
    "workers",
    "fastapi",
    "pydantic",
    "uvicorn",
}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `statement`."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_the_import_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """The store knows nobody, producers know no workers, the client needs no heavy package: also not by a detour."""
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "statement",
    [
        "import producers",
        "from producers import *",
        "import producers.commands.main",
        "import producers.gateway.commands",
    ],
)
def test_the_client_imports_nothing_heavy(statement: str) -> None:
    """Whoever only submits installs and loads neither torch nor Celery; an API backend starts at once."""
    assert not loaded_by(statement) & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "workers.node.node",
        "workers.consumer.worker",
        "workers.consumer.app",
        "workers.fleet.local",
        "workers.commands.main",
    ],
)
def test_a_workers_parent_imports_no_torch(module: str) -> None:
    """Only the device process has torch: the parent stays small, and its GIL is not the model's."""
    assert not loaded_by(f"import {module}") & {"torch", "transformers", "torchvision"}
