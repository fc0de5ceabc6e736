"""The wheel of an older commit, in an environment of its own beside the dependencies of this one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

#: The commit from which every later one can be reached by an upgrade of a running fleet.
COMMIT = "1a7a1cf"

ROOT = Path(__file__).parents[2]


def python() -> Path:
    """Return the environment's Python. The environment is made once, in ``build/``."""
    folder = ROOT / "build" / f"argosy-{COMMIT}"
    found = folder / "bin" / "python"
    if not (folder / "complete").exists():
        with tempfile.TemporaryDirectory(prefix="argosy-wheel-") as temporary:
            wheel = _built(Path(temporary))
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
            _run(sys.executable, "-m", "pip", "--python", str(found), "install", "--no-deps", "--no-index", str(wheel))
        # after the installation: pip would take this environment's own argosy for an older one to be replaced
        paths = sysconfig.get_paths()
        lines = "\n".join(dict.fromkeys([paths["purelib"], paths["platlib"]]))
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(f"{lines}\n", encoding="utf-8")
        (folder / "complete").touch()
    return found


def _built(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    archive = folder / "source.tar"
    _run("git", "-C", str(ROOT), "archive", f"--output={archive}", COMMIT)
    _run("tar", "--extract", f"--file={archive}", f"--directory={source}")
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={folder}", str(source))
    return next(folder.glob("argosy-*.whl"))


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr[-2000:]}"
