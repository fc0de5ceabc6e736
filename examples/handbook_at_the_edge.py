"""Questions over the handbook, answered by a site and by a centre of two nodes, one of which is killed meanwhile.

    python -m examples.handbook_at_the_edge [--folder handbook_at_the_edge] [--times 8]

The site recognises what a question is about, and asks the centre where it is unsure. Only the centre has the
handbook's index. The questions are asked twice: undisturbed, and while a node of the centre is killed. Exits non-zero
unless the answers are the same, and each is stored once on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.disasters.fleet import GatewayFleet, watched
from producers import Client, Job
from producers.documents import read_documents, write_index
from producers.gateway.keys import new_key
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection
from results_store.records import Result
from results_store.store import Store
from workers import settings

EXAMPLES = Path(__file__).parent

#: What people say before a question: so each question comes in several forms.
GREETINGS = (
    "",
    "Hello. ",
    "Good morning! ",
    "A short question: ",
    "Excuse me. ",
    "Hi there, ",
    "Hey, ",
    "Please tell me: ",
)

MODELS = """
[worker]
models = ["text"]
tune_at_start = false
lease_s = 5.0                        # the work of a killed node is taken over after this time

[models.text.tasks.intent]
kind = "zero-shot-classification"
params.hypothesis_template = "{}"
params.candidate_labels = [
    "returns and refunds", "delivery and shipping", "payment and gift cards", "warranty and repairs", "account and password",
    "the shop and its opening hours", "renting gear", "club membership and points", "courses", "washing and care of gear",
]
"""

CENTRE = """
[models.text.tasks.handbook]
kind = "passage-retrieval"
params = { top_k = 2, min_score = 0.38 }

[models.text.options.indexes]
handbook = "index"
"""

SITE = """
[edge]
site = "harbour"
centre = "CENTRE"
key_file = "centre.key"

[edge.tasks.topic-of-question]
site = "intent"
centre = "intent"
threshold = 0.5

[edge.tasks.handbook]
only_at_centre = true
kind = "passage-retrieval"
"""

TASKS = ("topic-of-question", "handbook")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("handbook_at_the_edge"), help="a new folder")
    parser.add_argument("--times", type=int, default=len(GREETINGS), help="of each question, said in another way")
    asked = parser.parse_args()
    lines = (EXAMPLES / "handbook_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [said + json.loads(line)["question"] for said in GREETINGS[: asked.times] for line in lines]
    folder = asked.folder.resolve()
    folder.mkdir(parents=True)
    with centre_in(folder) as centre, site_in(folder, centre.gateway_url) as site:
        before = run(site, questions)
        kept = results_at(centre)
        with watched(centre):  # it starts a node again that died, as `argosy up` does
            after = run(site, questions, meanwhile=lambda: kill_a_node(centre, kept))
        return compare(before, after, (kept, results_at(centre)), len(questions))


@contextmanager
def centre_in(folder: Path) -> Iterator[GatewayFleet]:
    """Start a fleet of two nodes with the handbook's index, and a gateway with a key for the site."""
    config = folder / "centre.toml"
    config.write_text(MODELS + CENTRE, encoding="utf-8")
    chosen = settings.load(config)
    fleet = GatewayFleet(chosen, folder / "centre", config=config, gateway=("--rate", "10000"), workers_per_device=2)
    with fleet, Client(fleet.broker_url, fleet.store_url, catalogue=Catalogue.from_toml(config)) as client:
        write_index(client, list(read_documents([EXAMPLES / "handbook"])), folder / "index", pieces=40)
        text, key = new_key("harbour", "harbour", created_at=time.time())
        client.ask(lambda store: store.keys.add(key))
        (folder / "centre.key").write_text(text, encoding="utf-8")
        with patch.dict(os.environ, {"ARGOSY_FLEET": str(config)}):
            fleet.start_gateway()
        yield fleet


@contextmanager
def site_in(folder: Path, centre: str) -> Iterator[Client]:
    """Start `argosy edge`, and give a client as a program at the site has it."""
    config = folder / "site.toml"
    config.write_text(MODELS + SITE.replace("CENTRE", centre), encoding="utf-8")
    environment = {**os.environ, "ARGOSY_HOME": str(folder / "site")}
    command = [sys.executable, "-m", "producers.commands.main", "edge", "--config", str(config)]
    with (folder / "site.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until((folder / "site" / "fleet.json").exists, process)
        where = Connection(environment=environment)
        with Client(where.broker_url, where.store_url, catalogue=where.catalogue) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)


def wait_until(look: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    ends_at = time.monotonic() + 120
    while not look():
        if time.monotonic() > ends_at or (process is not None and process.poll() is not None):
            raise SystemExit("it did not come about within two minutes, see the logs in the folder")
        time.sleep(0.02)


def run(site: Client, questions: list[str], meanwhile: Callable[[], None] = lambda: None) -> list[Result]:
    """Ask all questions as a job at the site; return its results in order."""
    job: Job = site.submit_many(TASKS, questions)
    meanwhile()
    job.wait(timeout_s=300)
    return sorted(job.results(), key=lambda row: (row.seq, row.task))


def kill_a_node(centre: GatewayFleet, kept: int) -> None:
    """Kill a node of the centre, once the first new results are there."""
    wait_until(lambda: results_at(centre) > kept)
    node = centre.workers[1].process
    assert node
    node.kill()
    print(f"killed node {node.pid} of the centre")


def results_at(centre: GatewayFleet) -> int:
    """Return the number of results that the centre has stored for the site."""
    with Store(centre.store_url) as store:
        return sum(job.done for job in store.jobs(limit=10_000, tenant="harbour"))


def compare(before: list[Result], after: list[Result], at_centre: tuple[int, int], questions: int) -> int:
    """Print who answered; return the exit status."""
    by = Counter(f"{row.task} by the {who(row)}" for row in after)
    print("\n".join(f"{count:5} {told}" for told, count in sorted(by.items())))
    same = [said(one) == said(other) for one, other in zip(before, after, strict=True)]
    once = [(row.seq, row.task) for row in after] == [(n, task) for n in range(questions) for task in sorted(TASKS)]
    twice = at_centre[1] == 2 * at_centre[0]
    print(f"{sum(same)} of {len(same)} answers are those of the undisturbed run")
    print(f"{'each' if once else 'NOT each'} is stored once at the site, {'and' if twice else 'but NOT'} at the centre")
    return 0 if all(same) and once and twice else 1


def who(row: Result) -> str:
    if row.output == []:
        return "centre, which knows no passage"
    output: Any = row.output
    return str(output[0]["cascade"]["by"])


def said(row: Result) -> tuple[Any, ...]:
    """Return what an answer says: who gave it, and its labels or passages in their order, without their scores."""
    output: Any = row.output
    return row.state, who(row), [one.get("label") or (one["document"], one["text"]) for one in output]


if __name__ == "__main__":
    sys.exit(main())
