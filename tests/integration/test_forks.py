"""Clients and stores in forked children: multiprocessing's "fork", and servers that load an application first."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from producers.client.async_client import AsyncClient
from producers.client.client import Client
from producers.wire.errors import ConfigurationError
from results_store.errors import StoreError
from results_store.records import Claim
from results_store.sql import database
from results_store.store import Store
from tests.integration.rows import submit
from tests.integration.stand_in import StandIn

#: A child that hangs is killed after this time.
HANGS_S = 60.0

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a child of `os.fork`, which must not fail."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(HANGS_S)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the child hangs")
    assert child.exitcode == 0


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str) -> Iterator[Client]:
    """A client with connections, threads and a stream of its own."""
    with Client(broker_url, store_url) as client:
        client.submit("topic", "before")
        StandIn(broker_url, store).work(1)
        yield client


def used(client: Client, stand_in: StandIn, text: str) -> tuple[str, int]:
    """Submit in each way and await the results."""
    handle = client.submit("topic", text)
    direct = client.submit("topic", text, durable=False, priority="interactive")
    job = client.submit_many("topic", [text] * 3)
    while len(stand_in.waiting()):
        stand_in.work(1)
    assert handle.result(HANGS_S) == direct.result(HANGS_S) == [{"label": f"topic of {text}", "score": 0.5}]
    assert job.wait(HANGS_S).succeeded == 3
    return handle.job, handle.seq


def test_a_client_works_in_a_child_and_goes_on_in_the_parent(
    client: Client, broker_url: str, store: Store, store_url: str
) -> None:
    """The child numbers the items of a stream of its own, and ends nothing of its parent's when it exits."""
    stand_in = StandIn(broker_url, store)
    parent = os.getpid()
    before = used(client, stand_in, "parent")

    def work() -> None:
        job, _ = used(client, StandIn(broker_url, client._awaited._link.store), "child")
        assert job != before[0]
        assert client.job(job).progress().name == f"stream of {os.uname().nodename}:{os.getpid()}"
        assert os.getpid() != parent

    for _ in range(2):
        in_child(work)
    job, seq = used(client, stand_in, "parent")
    assert (job, seq > before[1]) == (before[0], True)


def test_children_and_their_parent_submit_at_the_same_time(client: Client, store: Store) -> None:
    """Also while the process is forked."""
    jobs: set[str] = set()
    forking = threading.Event()

    def submit_on() -> None:
        while not forking.is_set():
            jobs.add(client.submit("topic", "parent").job)

    thread = threading.Thread(target=submit_on)
    thread.start()
    try:
        for _ in range(5):
            in_child(lambda: [client.submit("topic", "child") for _ in range(20)])
    finally:
        forking.set()
        thread.join()
    assert len(jobs) == 1
    assert sum(job.total for job in store.jobs() if job.id not in jobs) == 5 * 20


_shared: list[Client] = []  # by a program that makes its client first and then its pool


def ask(text: str) -> str:
    (client,) = _shared
    answers = [client.submit("topic", text, durable=durable).result(HANGS_S) for durable in (True, False)]
    (label,) = {answer[0]["label"] for answer in answers}
    return str(label)


def test_a_forked_pool_and_its_parent_hear_their_own_answers(client: Client, broker_url: str, store: Store) -> None:
    """Each asks at the same time as the others, through the client that the parent had used before."""
    _shared[:] = [client]
    texts, own = [f"child {number}" for number in range(12)], [f"parent {number}" for number in range(4)]
    worker = threading.Thread(target=StandIn(broker_url, store).work_off, args=(2 * len(texts + own),))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        asked = [pool.submit(ask, text) for text in texts]
        worker.start()
        answers = [ask(text) for text in own]
        answers += [future.result(HANGS_S) for future in asked]
    worker.join()
    assert answers == [f"topic of {text}" for text in own + texts]
    assert all(job.finished for job in store.jobs())


def test_what_belongs_to_a_process_is_refused_as_an_argument_of_a_pool(client: Client) -> None:
    """With a sentence that says what to send instead."""
    handle, job = client.submit("topic", "a"), client.submit_many("topic", ["a"])
    for thing, remedy in (
        (client, "this Client belongs to its process and cannot be sent to another; make one in each process"),
        (client._awaited, "make one in each process"),
        (handle, "this Handle .* send its `job` and `seq`"),
        (handle.awaited, "this AsyncHandle .* send its `job` and `seq`"),
        (job, "this Job .* send its `id`, and make it there with `client.job"),
    ):
        with pytest.raises(ConfigurationError, match=remedy):
            pickle.dumps(thing)


def test_an_asyncio_client_works_in_a_child(broker_url: str, store: Store, store_url: str) -> None:
    """In a loop of the child's."""
    client = AsyncClient(broker_url, store_url)

    async def submit_one() -> object:
        return await client.submit("topic", "a")

    async def close() -> None:
        await submit_one()
        await client.close()

    async def scenario() -> None:
        await submit_one()
        in_child(lambda: asyncio.Runner().run(close()))
        await close()

    asyncio.run(scenario())
    assert sum(job.total for job in store.jobs()) == 3


def test_a_handle_of_the_parent_is_refused_by_name(client: Client) -> None:
    """Its thread of notices is the parent's. Its stored rows can be read."""
    handle = client.submit("topic", "a")

    def work() -> None:
        for call in (handle.result, handle.cancel):
            with pytest.raises(ConfigurationError, match="handle belongs to process"):
                call()
        assert handle.results() == []

    in_child(work)
    assert handle.cancel()


def test_a_child_that_exits_in_the_usual_way_ends_nothing(client: Client, broker_url: str, store: Store) -> None:
    """With its finalizers, unlike multiprocessing's. The parent's session of PostgreSQL stays."""
    child = os.fork()
    if not child:
        code = 1
        try:
            client.close()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    used(client, StandIn(broker_url, store), "parent")


LIVES_ON = """
import builtins
from results_store.sql.engines.forks import at_fork

class Owner:
    def __init__(self):
        self.itself = self
        at_fork("child", self.start_anew)

    def start_anew(self):
        pass

builtins.owner = Owner()
"""


def test_an_object_that_lives_until_the_end_of_its_process_prints_no_error() -> None:
    """As the client of a notebook may."""
    done = subprocess.run([sys.executable, "-c", LIVES_ON], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture
def lite(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'lite.db')}") as store:
        yield store


def test_a_child_inherits_no_open_sqlite_file(lite: Store, tmp_path: Path) -> None:
    """SQLite remembers in memory which locks it holds, and a child would believe that it holds its parent's."""
    submit(lite, 2)

    def work() -> None:
        assert not [file for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path / "lite.db"))]
        assert lite.claim(["e1"], worker="child", lease_s=1e12)["e1"].verdict is Claim.WORK

    in_child(work)
    assert lite.claim(["e1"], worker="parent", lease_s=1e12)["e1"].verdict is Claim.HELD


def test_a_child_of_a_fork_within_a_transaction_is_refused(lite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would believe that it holds its parent's locks."""
    monkeypatch.setattr(database, "FORK_S", 0.05)

    def work() -> None:
        with pytest.raises(StoreError, match="while this process was forked"):
            lite.jobs()

    with lite._database.read():
        in_child(work)
    assert lite.jobs() == []
    in_child(lite.jobs)
