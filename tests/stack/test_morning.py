"""A morning with the product, told in order, with real processes: nothing is lost or done twice, and no hands are needed.

`make test-morning` runs it alone. It needs no Docker engine. ARGOSY_PICTURES names a folder for the pictures of the page
and of Flower that it takes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from examples import demo, screenshots
from producers import Client
from producers.client.handles import Job
from producers.wire.queues import waiting_messages
from tests.conftest import free_port
from tests.end_to_end.chromium import OUTSIDE, chromium, tab
from tests.end_to_end.documents import ROOT
from tests.end_to_end.processes import until
from tests.stack.morning import ARGOSY, Console, Lines, Terminal, command, missing, spawn
from workers import settings

FLEET = """
[worker]
models = ["text", "vision", "own"]

[models.own]
class = "tests.stack.own_model:Own"
batch_rows = 32
options = {{ fail_to_load = "{left}" }}

[models.own.tasks]
echo = "text-classification"

[models.dozing]
class = "tests.stack.own_model:Own"

[models.dozing.tasks]
later = "text-classification"
"""

#: More envelopes of 64 texts than a worker takes at a time.
MANY = 6000

#: Items of the Celery application, after each start of the fleet.
APPLICATION = 200

#: Items that are cancelled before anybody serves their model.
UNWANTED = 150


class Morning:
    """The fleet's home, and everybody who works with it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.left = folder / "left"
        self.left.touch()
        self.toml = folder / "fleet.toml"
        self.toml.write_text(FLEET.format(left=self.left), encoding="utf-8")
        self.held = folder / "held"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")},
            "ARGOSY_HOME": str(self.home),
            "ARGOSY_FLEET": str(self.toml),
            "PYTHONPATH": str(ROOT),
            "FLOWER_READ_ONLY": "false",  # an operator opened it
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        self.terminal = Terminal(self.environment)

    @property
    def addresses(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "fleet.json").read_bytes())
        return found

    @property
    def redis(self) -> Redis:
        return Redis.from_url(self.addresses["broker_url"])

    def sql(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.home / "store.db")) as database:
            return database.execute(query).fetchall()

    def submit_held(self, client: Client, name: str) -> Job:
        """Submit a job that cannot end while the file is there, with envelopes that run and envelopes that wait."""
        job = client.submit_many("echo", [f"hold {self.held}", *(f"{name} {n}" for n in range(MANY - 1))], name=name)
        until(self.held.exists)
        return job

    def stop(self) -> str:
        """Press Ctrl-C, and let the batch at the device end. Return all that `argosy up` said. No process is left."""
        family = psutil.Process(self.terminal.process.pid).children(recursive=True)
        self.terminal.interrupt()
        self.held.unlink(missing_ok=True)
        said = self.terminal.stopped()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, f"left behind: {alive}"
        return said


@pytest.fixture
def morning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Morning]:
    found = Morning(tmp_path)
    for name in ("ARGOSY_HOME", "ARGOSY_FLEET"):
        monkeypatch.setenv(name, found.environment[name])
    yield found
    if found.terminal.process.poll() is None:
        found.stop()


class Server:
    """A server that loads the application first, and forks."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process, self.lines = spawn([sys.executable, "-m", "tests.stack.forking_server"], environment)
        self.url = f"http://127.0.0.1:{self.lines.until('^([0-9]+)$')[1]}"

    def ask(self, text: str) -> tuple[int, int]:
        """Return the process that answered, and its answer."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, text.encode()), timeout=90) as answer:
                found = json.load(answer)
        except OSError as error:
            raise AssertionError(f"{error!r}; the server said:\n{self.lines}") from error
        return found["pid"], found["output"]["crc"]


@pytest.fixture
def server(morning: Morning) -> Iterator[Server]:
    found = Server(morning.environment)
    yield found
    _end(found.process, found.lines)


@pytest.fixture
def notebook(morning: Morning) -> Iterator[Console]:
    found = Console(morning.environment)
    found.run("from producers import AsyncClient, Client")
    found.run("client = AsyncClient()")
    yield found
    said = found.close()
    assert "Traceback" not in said, said


@pytest.fixture
def application(morning: Morning) -> Iterator[Console]:
    """A stock Celery application: it knows two addresses and a name."""
    urls = {f"ARGOSY_{name}_URL": morning.addresses[f"{name.lower()}_url"] for name in ("BROKER", "STORE")}
    found = Console({**morning.environment, **urls, "MODEL": "own", "TASK": "echo"})
    found.run("from examples.celery_application import app, ask, ask_all, envelope")
    yield found
    found.close()


@pytest.fixture
def gateway(morning: Morning) -> Iterator[str]:
    port = free_port()
    process, lines = spawn([*ARGOSY, "gateway", "--no-auth", "--port", str(port)], morning.environment)
    url = f"http://127.0.0.1:{port}"
    until(lambda: _ready(url))
    yield url
    _end(process, lines)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def _end(process: subprocess.Popen[str], lines: Lines) -> None:
    process.terminate()
    process.wait(60)
    lines.join()


def _ready(url: str) -> bool:
    with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/readyz", timeout=10):
        return True
    return False


def test_a_morning(
    morning: Morning,
    server: Server,
    notebook: Console,
    application: Console,
    gateway: str,
    browser: Browser,
    tmp_path: Path,
) -> None:
    with Client() as client:
        assert missing(morning.environment) == {}
        everybody_asks(server, notebook, application, "first")
        job = morning.submit_held(client, "revoked in Flower")
        revoke(morning, job)
        assert missing(morning.environment) == {}
        morning.held.unlink()
        finished(job)

        job = morning.submit_held(client, "over a Ctrl-C")
        before = morning.addresses
        assert "stopped; unfinished work stays in the store" in morning.stop()
        assert job.progress().done < MANY
        assert "broker" in missing(morning.environment)
        morning.terminal = Terminal(morning.environment)
        assert [morning.addresses[name] for name in ADDRESSES] == [before[name] for name in ADDRESSES]
        everybody_asks(server, notebook, application, "second")
        until(lambda: _ready(gateway))
        finished(job)

        plant_faults(morning, client, application)
        waiting = plant_unserved_work(morning, client)
        see_unserved_work(browser, gateway, waiting)
        cancel_unserved_work(client)
        job = morning.submit_held(client, "over a damaged file")
        morning.stop()
        damage_append_only_file(morning.home)
        morning.left.write_text("..", encoding="utf-8")
        morning.toml.write_text(morning.toml.read_text(encoding="utf-8").replace('"own"]', '"own", "dozing"]'))
        morning.terminal = Terminal(morning.environment)
        said = morning.terminal.lines.said
        assert [line for line in said if "could not read its data" in line]
        ends = [line for line in said if "worker-cpu ended" in line]
        assert ["exit code 1" in end and "scripted not to load" in end for end in ends] == [True, True]
        everybody_asks(server, notebook, application, "third")
        finished(job)
        finished(waiting)
        all_is_done(morning)

        pictures = Path(os.environ.get("ARGOSY_PICTURES") or tmp_path / "pictures")
        camera = screenshots.Camera(browser, pictures, nothing_outside)
        photographs = demo.pull(settings.load(environment={}))
        screenshots.take(camera, gateway, morning.addresses["flower_url"], client, photographs, texts=5000)
        until(lambda: not morning.sql("SELECT id FROM jobs WHERE finished_at IS NULL"))
    assert missing(morning.environment) == {}
    morning.stop()


#: What stays over restarts.
ADDRESSES = ("broker_url", "store_url", "flower_url")


def finished(job: Job) -> None:
    status = job.wait(timeout_s=300)
    assert status.succeeded == status.total == status.items


def everybody_asks(server: Server, notebook: Console, application: Console, when: str) -> None:
    """Each gets the answers to its own questions."""
    texts = [f"{when} of the server, {n}" for n in range(100)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(server.ask, texts))
    assert [crc for _, crc in answers] == crcs(texts)
    assert len({pid for pid, _ in answers}) > 1

    texts = [f"{when} of the notebook, {n}" for n in range(20)]
    notebook.run(f"handles = [await client.submit('echo', text) for text in {texts}]")
    notebook.run(f"job = await client.submit_many('echo', {texts})")
    assert notebook.value("[(await handle)['crc'] for handle in handles]") == crcs(texts)
    assert notebook.value("(await job.wait(60)).succeeded") == 20
    assert notebook.value("[row.output['crc'] async for row in job.results()]") == crcs(texts)
    notebook.run("other = Client()")  # a cell that is run again
    assert notebook.value(f"other.submit('echo', {texts[0]!r}).result(60)['crc']") == crcs(texts)[0]
    notebook.run("other.close()")

    texts = [f"{when} of the application, {n}" for n in range(APPLICATION)]
    assert application.value(f"ask({texts[0]!r})['crc']") == crcs(texts)[0]
    assert application.value(f"[output['crc'] for output in ask_all({texts})]") == crcs(texts)


def crcs(texts: list[str]) -> list[int]:
    return [zlib.crc32(text.encode()) for text in texts]


def revoke(morning: Morning, job: Job) -> None:
    """Revoke an envelope that runs and one that waits, with Flower's API."""
    flower = morning.addresses["flower_url"]
    rows = morning.sql(f"SELECT id, worker FROM envelopes WHERE job = '{job.id}' AND state <> 'done'")
    running = next(id_ for id_, worker in rows if worker)
    waits = next(id_ for id_, worker in rows if not worker)
    for id_ in (running, waits):
        for end in ("", "?terminate=true"):
            request = urllib.request.Request(f"{flower}/api/task/revoke/{id_}{end}", method="POST")
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200


def plant_faults(morning: Morning, client: Client, application: Console) -> None:
    """Each is found, and nothing else is said."""
    for plant, expected in ((frozen, "worker"), (full, "messages"), (misspelt, "settings")):
        with plant(morning, client):
            assert set(missing(morning.environment)) == {expected}
    application.run("app.send_task('argosy.envelope', [envelope(['x'])], queue='argosy.owm')")
    with morning.redis as redis:
        until(lambda: redis.llen("argosy.owm"))
        assert set(missing(morning.environment)) == {"queue argosy.owm"}
        redis.delete("argosy.owm")
    assert missing(morning.environment) == {}


@contextmanager
def frozen(morning: Morning, client: Client) -> Iterator[None]:
    """As by a debugger, or by a machine without memory."""
    workers = [
        process
        for process in psutil.Process(morning.terminal.process.pid).children(recursive=True)
        if "worker" in process.cmdline()
    ]
    assert workers
    for process in workers:
        process.suspend()
    try:
        until(lambda: not client.live_nodes())
        yield
    finally:
        for process in workers:
            process.resume()
    until(client.live_nodes)


@contextmanager
def full(morning: Morning, client: Client) -> Iterator[None]:
    with morning.redis as redis:
        redis.config_set("maxmemory", 1)
        yield
        redis.config_set("maxmemory", 0)


@contextmanager
def misspelt(morning: Morning, client: Client) -> Iterator[None]:
    text = morning.toml.read_text(encoding="utf-8")
    morning.toml.write_text(text.replace("[worker]", "[wroker]"), encoding="utf-8")
    yield
    morning.toml.write_text(text, encoding="utf-8")


def plant_unserved_work(morning: Morning, client: Client) -> Job:
    """Submit items of a model that is in fleet.toml, and that no worker serves."""
    job = client.submit_many("later", [f"later {n}" for n in range(100)], name="for a model that dozes")
    assert set(missing(morning.environment)) == {"work of dozing, bulk", "queue argosy.dozing"}
    assert "no running worker serves dozing" in command(morning.environment, "status")[1]
    return job


def see_unserved_work(browser: Browser, gateway: str, job: Job) -> None:
    """The page says it in each view."""
    sentence = "No running worker serves dozing; the items wait until one does"
    with tab(browser, gateway) as page:
        page.goto("/#/jobs")
        expect(page.locator("#workers")).to_have_text("no worker serves dozing")
        page.goto("/#/fleet")
        expect(page.get_by_role("region", name="Waiting")).to_contain_text(sentence)
        expect(page.get_by_role("row", name="dozing")).to_contain_text("no worker serves it")
        page.goto(f"/#/jobs/{job.id}")
        expect(page.locator("main")).to_contain_text(sentence)


def cancel_unserved_work(client: Client) -> None:
    """A worker of another model ends it."""
    job = client.submit_many("later", [f"unwanted {n}" for n in range(UNWANTED)], name="not wanted any more")
    job.cancel()
    assert job.wait(timeout_s=120).cancelled == UNWANTED


def damage_append_only_file(home: Path) -> None:
    """As a broken disk does: in the middle."""
    [path] = (home / "valkey").glob("appendonlydir/*.incr.aof")
    assert path.stat().st_size > 10_000
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 1000)


def all_is_done(morning: Morning) -> None:
    """Each item has one result, and nothing is left anywhere."""
    assert morning.sql("SELECT id, name FROM jobs WHERE finished_at IS NULL") == []
    assert morning.sql("SELECT state, count(*) FROM envelopes WHERE state <> 'done' GROUP BY state") == []
    [(totals, succeeded, cancelled)] = morning.sql("SELECT sum(total), sum(succeeded), sum(cancelled) FROM jobs")
    [(results,)] = morning.sql("SELECT count(*) FROM item_results WHERE job IN (SELECT id FROM jobs)")
    assert results == totals == succeeded + cancelled
    assert cancelled == UNWANTED
    [(of_application,)] = morning.sql("SELECT count(*) FROM item_results WHERE job NOT IN (SELECT id FROM jobs)")
    assert of_application == 3 * (1 + APPLICATION)
    with morning.redis as redis:
        until(lambda: not redis.hlen("unacked") and not waiting_messages(redis))
    assert missing(morning.environment) == {}


def nothing_outside(page: Page, name: str) -> None:
    if name.startswith("page-"):
        assert page.evaluate(OUTSIDE) == [], name
