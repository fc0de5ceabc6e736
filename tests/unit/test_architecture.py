"""The directions and the lightness that DESIGN promises: who imports whom, and what an import brings along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("producers", "workers", "results_store")

#: Where Celery's own parts are used. Everything else, the client first of all, goes without.
CELERY = {
    "results_store/celery_backend.py",
    "workers/app.py",
    "workers/consumer.py",
    "workers/tasks.py",
    "workers/transport.py",
    "workers/worker.py",
}

#: What workers share with producers: the words on the wire, and the way to Redis. See docs/decisions/0008.
SHARED = {
    "blobs",
    "catalogue",
    "command_line",
    "connection",
    "errors",
    "files",
    "fleet_file",
    "kinds",
    "messages",
    "pipelines",
    "publisher",
    "queues",
}

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


def imports() -> Iterator[tuple[str, str]]:
    """Every import statement of the project, wherever it stands: (file, module)."""
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


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


def test_celery_stays_where_it_is_named() -> None:
    """Its API is wide and untyped: five modules know it, so that a new version of it is read in five places."""
    found = {file for file, module in imports() if module.partition(".")[0] in ("celery", "kombu", "billiard")}
    assert found == CELERY


def test_torch_stays_on_the_devices_side() -> None:
    """A worker's parent, the client and the store start in a blink and never hold an accelerator."""
    found = {file for file, module in imports() if module.partition(".")[0] in ("torch", "transformers", "torchvision")}
    outside = {file for file in found if not file.startswith(("workers/models/", "workers/training/"))}
    assert not outside - {"workers/device_process.py"}


def test_workers_share_only_the_wire_with_producers() -> None:
    """A worker that used the client could not be changed without it."""
    used = {
        module.split(".")[1]
        for file, module in imports()
        if file.startswith("workers/") and module.startswith("producers.")
    }
    assert used <= SHARED, f"new: {sorted(used - SHARED)}"


@pytest.mark.parametrize(
    "statement",
    ["import producers", "from producers import *", "import producers.cli", "import producers.gateway.commands"],
)
def test_the_client_imports_nothing_heavy(statement: str) -> None:
    """Whoever only submits installs and loads neither torch nor Celery; an API backend starts at once."""
    assert not loaded_by(statement) & HEAVY


@pytest.mark.parametrize("module", ["workers.node", "workers.worker", "workers.app", "workers.fleet", "workers.cli"])
def test_a_workers_parent_imports_no_torch(module: str) -> None:
    """Only the device process has torch: the parent stays small, and its GIL is not the model's."""
    assert not loaded_by(f"import {module}") & {"torch", "transformers", "torchvision"}
