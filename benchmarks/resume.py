"""What is lost or doubled when `argosy submit` is killed three times and run again?

A file of rows is submitted by the command itself in a process of its own, killed with SIGKILL at a sixth, a half and
five sixths of it, and run a fourth time, to its end; then every result is counted. The model does nothing. The figures
of a whole run are `results`, which must be the number of rows, and `missing`, `doubled` and `misplaced` (a result whose
key is not its row's), which must be 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import convention
from benchmarks.overhead import FLEET
from producers import Client
from results_store.records import JobStatus

#: What a kill left between its commit and Redis is published after seconds, not half a minute: this is about loss, not
#: time.
IMPATIENT = FLEET.replace("[worker]", "[worker]\npublish_overdue_s = 2.0\nreconcile_every_s = 0.5")


def main() -> None:
    options = convention.options(__doc__)
    rows, kills = (9_000, 1) if options.quick else (200_000, 3)  # three chunks, or fifty
    with tempfile.TemporaryDirectory() as folder:
        source = write_source(Path(folder) / "rows.jsonl", rows)
        with convention.fleet(toml=IMPATIENT) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
            os.environ |= {"ARGOSY_BROKER_URL": fleet.broker_url, "ARGOSY_STORE_URL": fleet.store_url}
            runs = [killed_run(client, source, rows * (2 * kill + 1) // (2 * kills)) for kill in range(kills)]
            job = whole_run(source)
            status = client.job(job).wait(timeout_s=600)
            figures = counted(client, status, rows)
            assert len(client.jobs()) == 1, "the runs made more than one job"
    hits = [items for killed, items in runs if killed]
    figures |= {"kills": len(hits)} | {f"accepted_at_kill_{number}": items for number, items in enumerate(hits, 1)}
    assert options.quick or len(hits) == kills
    assert figures["results"] == rows
    assert not any(figures[name] for name in ("missing", "doubled", "misplaced"))
    convention.report("resume", figures, keep=options.keep)


def write_source(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            f'{{"id": "row-{number}", "text": "a short text, number {number}"}}\n' for number in range(rows)
        )
    return path


def command(source: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "producers.commands.main",
        "submit",
        str(source),
        "--task",
        "nothing",
        "--id-column",
        "id",
    ]


def killed_run(client: Client, source: Path, at_items: int) -> tuple[bool, int]:
    """Run the command and kill it once the job has so many items; return whether that hit it, and how many it had
    then.
    """
    with subprocess.Popen(command(source), stdout=subprocess.DEVNULL) as process:
        while items_of(client) < at_items:
            if process.poll() is not None:
                raise RuntimeError(f"the command ended by itself with {process.returncode}, before it could be killed")
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL  # a short run may have come to its end in the meantime
    items = items_of(client)
    convention.progress(f"killed with {items:,} items accepted")
    return killed, items


def items_of(client: Client) -> int:
    jobs = client.jobs(limit=1)
    return jobs[0].items if jobs else 0


def whole_run(source: Path) -> str:
    ran = subprocess.run(command(source), stdout=subprocess.PIPE, text=True, check=True)
    convention.progress("the last run came to its end")
    return ran.stdout.strip()


def counted(client: Client, status: JobStatus, rows: int) -> dict[str, int]:
    """Count the results one by one, and not what the job says of itself."""
    seen = bytearray(rows)
    results = misplaced = 0
    for row in client.results(status.id):
        results += 1
        seen[row.seq] = min(255, seen[row.seq] + 1)
        misplaced += row.key != f"row-{row.seq}" or row.state != "succeeded"
    return {
        "results": results,
        "missing": seen.count(0),
        "doubled": results - rows + seen.count(0),
        "misplaced": misplaced,
        "items": status.items,
    }


if __name__ == "__main__":
    main()
