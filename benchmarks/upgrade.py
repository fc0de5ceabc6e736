"""How much of an upgrade do callers notice? The schema, all workers and the producers of a fleet are upgraded under load.

    python -m benchmarks.upgrade [--store sqlite|postgresql] [--items N]

Two workers of commit 1a7a1cf (`tests.upgrade.installed`) compute the items of bulk of a producer, while an asker submits single
interactive texts and waits for each answer. In the order of docs/upgrading.md, and with work before each step: this
version's `argosy migrate`, each worker stopped (SIGTERM) and started in this version, a new asker started and the old one
stopped.

Figures: `lost` are items without a row, `doubled` rows that nobody submitted or counts above the rows, `wrong` rows and
answers that differ from the text's checksum. `gap_max_s` is the longest time without an interactive answer from the
first to the last of them. `stop_codes` are the exit codes of the older workers. `answer_p50_s` and `answer_max_s` are the waits for one. `left_share` is the share of the
bulk that was unfinished after the last step: over 0, the load outlasted the upgrade.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import convention
from benchmarks.disasters.databases import postgresql
from benchmarks.disasters.verdict import percentile
from results_store.export.text_export import stream
from results_store.records import ResultState
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.upgrade import installed
from tests.upgrade.versions import BOTH, FLEET, Process, Stored, Version, kill, newer, older
from workers.fleet.embedded_broker import EmbeddedValkey

#: The device's time for a text, so that the bulk outlasts the restarts, and the time after which a run is given up.
TEXT_S, LIMIT_S = 0.012, 900.0

WORKERS = ("first", "second")


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--items", type=int, default=20_000, help="items of bulk (default: 20000)")
    options = parser.parse_args()
    if options.quick:
        options.items = 6000
    before = older(installed.python())
    with tempfile.TemporaryDirectory(prefix="argosy-upgrade-") as folder, _servers(options.store, Path(folder)):
        run = Run(Path(folder), before, newer(), options.items)
        try:
            figures = run.play()
        finally:
            run.end()
    clean = not (figures["lost"] or figures["doubled"] or figures["wrong"])
    convention.report(
        "upgrade", {"store": options.store, "clean": clean, **figures}, keep=options.keep, variant=options.store
    )
    if not clean:
        sys.exit("upgrade: results are lost, doubled or wrong")


@contextmanager
def _servers(store: str, folder: Path) -> Iterator[None]:
    """Start broker and database, and name them to the processes of both versions."""
    (folder / "fleet.toml").write_text(FLEET, encoding="utf-8")
    with ExitStack() as stack:
        broker = EmbeddedValkey(folder / "valkey")
        broker.start()
        stack.callback(broker.stop)
        database = stack.enter_context(postgresql() if store == "postgresql" else nullcontext())
        os.environ["ARGOSY_BROKER_URL"] = broker.url
        os.environ["ARGOSY_STORE_URL"] = database.url if database else f"sqlite:///{folder / 'argosy.db'}"
        os.environ["CHECKSUM_TEXT_S"] = str(TEXT_S)
        yield


@dataclass(slots=True)
class Run:
    """A fleet from its start in one version to the last result in another."""

    folder: Path
    before: Version
    after: Version
    items: int
    _processes: dict[str, Process] = field(default_factory=dict)
    _restarts_s: list[float] = field(default_factory=list)
    _stop_codes: list[int] = field(default_factory=list)

    def play(self) -> dict[str, Any]:
        self.before.migrate(self.folder)
        stored = Stored(os.environ["ARGOSY_STORE_URL"])
        part = self.items // 10
        for name in WORKERS:
            self._processes[name] = self.before.worker(self.folder, name)
        self._start(self.before, "bulk", str(self.items))
        self._start(self.before, "ask", str(self.folder / "ask.stop"))
        convention.progress("the older version computes")
        self._work(stored, part)
        began = time.monotonic()
        self.after.migrate(self.folder)
        migrated_s = time.monotonic() - began
        convention.progress(f"migrated in {migrated_s:.1f} s")
        for name in WORKERS:
            self._work(stored, part // 2)
            self._restart(name)
        self._start(self.after, "ask", str(self.folder / "again.stop"), ledger="again")
        self._work(stored, part // 2)
        self._stop("ask", "ask.stop")
        with Store(os.environ["ARGOSY_STORE_URL"]) as store:
            left = sum(one.items for one in store.depth())
            convention.progress(f"upgraded, with {left:,} items to go")
            self._finish(store)
            self._stop("again", "again.stop")
            figures = self._judged(store)
        return figures | {"migrated_s": round(migrated_s, 2), "left_share": round(left / self.items, 3)}

    def end(self) -> None:
        """End what still runs, workers first in peace."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                kill(process)

    def _work(self, stored: Stored, by: int) -> None:
        """Return once so many more results are stored, or the bulk is done."""
        goal = min(self.items, stored.number() + by)
        until(lambda: stored.number() >= goal, timeout_s=LIMIT_S)

    def _start(self, version: Version, script: str, *arguments: str, ledger: str = "") -> None:
        name = ledger or script
        command = (str(BOTH / f"{script}.py"), str(self._ledger(name)), *arguments)
        self._processes[name] = version.start(self.folder, f"{name}.log", *command)

    def _stop(self, name: str, file: str) -> None:
        (self.folder / file).touch()
        self._ended(name)

    def _ended(self, name: str) -> None:
        if self._processes[name].wait(timeout=LIMIT_S):
            raise RuntimeError((self.folder / f"{name}.log").read_text(encoding="utf-8")[-4000:])

    def _restart(self, name: str) -> None:
        began = time.monotonic()
        self._processes[name].terminate()
        self._stop_codes.append(self._processes[name].wait(timeout=LIMIT_S))
        self._processes[name] = self.after.worker(self.folder, name)
        self._restarts_s.append(time.monotonic() - began)
        convention.progress(f"the {name} worker is of this version after {self._restarts_s[-1]:.1f} s")

    def _finish(self, store: Store) -> None:
        self._ended("bulk")
        try:
            until(lambda: all(store.job(job).finished for job, _ in self._lines("bulk")), timeout_s=LIMIT_S)
        except AssertionError:
            convention.progress("given up: not all jobs end")

    def _judged(self, store: Store) -> dict[str, Any]:
        lost = doubled = wrong = rows = 0
        for job, texts in self._lines("bulk"):
            found = {row.seq: row for row in stream(store, job)}
            rows += len(found)
            lost += len(set(range(len(texts))) - found.keys())
            doubled += len(found.keys() - set(range(len(texts)))) + max(0, store.job(job).done - len(found))
            wrong += sum(not _is_right(row, texts[seq]) for seq, row in found.items() if seq < len(texts))
        answers = sorted(line for name in ("ask", "again") for line in self._lines(name))
        gaps = [later[0] - earlier[0] for earlier, later in pairwise(answers)]
        waits = [wait_s for _, wait_s, _ in answers]
        return {
            "items": self.items,
            "rows": rows,
            "lost": lost,
            "doubled": doubled,
            "wrong": wrong + sum(not right for *_, right in answers),
            "answers": len(answers),
            "gap_max_s": round(max(gaps), 3),
            "answer_p50_s": percentile(waits, 50),
            "answer_max_s": round(max(waits), 3),
            "stop_codes": self._stop_codes,
            "restarts_s": [round(one, 1) for one in self._restarts_s],
        }

    def _ledger(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in self._ledger(name).read_text(encoding="utf-8").splitlines()]


def _is_right(row: Any, text: str) -> bool:
    return row.state is ResultState.SUCCEEDED and row.output == {"crc": zlib.crc32(text.encode())}


if __name__ == "__main__":
    main()
