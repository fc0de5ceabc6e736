"""People's own Celery code on the result backend: a stock worker, a real broker, each database."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group, states
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ChordError, ImproperlyConfigured, TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult, allow_join_result, result_from_tuple
from celery.worker import state as worker_state

from results_store.celery_results import celery_rows
from results_store.celery_results.celery_rows import ChordPart, TaskRow
from results_store.celery_results.transactions import CeleryResults, _Write, close_shared
from results_store.errors import SchemaMismatch, StoreUnavailable
from results_store.sql.database import Database
from results_store.store import Store

TIMEOUT_S = 60

FAILED = '{"exc_type": "ValueError", "exc_message": ["of task 7"], "exc_module": "builtins"}'


@pytest.fixture
def results(store: Store, store_url: str) -> Iterator[CeleryResults]:
    """The Celery tables of each database, migrated."""
    results = CeleryResults(store_url)
    results.open()
    yield results
    results.close()


def make_app(broker_url: str, store_url: str, **settings: Any) -> Celery:
    app = Celery("own", broker=broker_url, backend=f"argosy+{store_url}", set_as_current=False)
    app.conf.update({"worker_prefetch_multiplier": 8, "broker_connection_retry_on_startup": True, **settings})

    @app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(shared=False)
    def fail(message: str) -> None:
        raise ValueError(message)

    @app.task(shared=False)
    def odd() -> object:
        return object()

    app.kept = []

    @app.task(shared=False)
    def keep(numbers: list[int]) -> int:
        app.kept.append(numbers)
        return len(numbers)

    app.first_ran = threading.Event()

    @app.task(shared=False)
    def first() -> int:
        app.first_ran.set()
        return 1

    @app.task(shared=False)
    def waits() -> int:
        with allow_join_result():
            return int(add.delay(1, 1).get(timeout=TIMEOUT_S)) + 1

    @app.task(shared=False, bind=True)
    def first_of(self: Any, x: int) -> Any:
        return self.replace(add.s(x, 1))

    return app


@pytest.fixture
def app(broker_url: str, store: Store, store_url: str) -> Iterator[Celery]:
    """A Celery app that has none of our code, with a worker of eight threads."""
    app = make_app(broker_url, store_url)
    with start_worker(app, pool="threads", concurrency=8, perform_ping_check=False, shutdown_timeout=TIMEOUT_S):
        yield app
    app.close()
    close_shared(store_url)


def task(app: Celery, name: str) -> Any:
    return next(each for full, each in app.tasks.items() if full.endswith(f".{name}"))


# --- tasks ---


def test_a_result_comes_back(app: Celery) -> None:
    """`delay().get()`: the first thing anybody does."""
    result = task(app, "add").delay(2, 3)

    assert result.get(timeout=TIMEOUT_S) == 5
    again = AsyncResult(result.id, app=app)
    assert (again.state, again.result, again.successful()) == (states.SUCCESS, 5, True)
    assert again.date_done is not None


def test_a_failure_comes_back_as_itself(app: Celery) -> None:
    """The exception's type and message, and the worker's traceback as text."""
    result = task(app, "fail").delay("broken ☂")

    with pytest.raises(ValueError, match="broken ☂"):
        result.get(timeout=TIMEOUT_S)
    assert result.state == states.FAILURE
    assert "raise ValueError(message)" in result.traceback


def test_what_json_has_no_word_for_is_a_failure_that_says_so(app: Celery) -> None:
    """Nothing is pickled behind anybody's back."""
    result = task(app, "odd").delay()

    with pytest.raises(Exception, match="not JSON serializable"):
        result.get(timeout=TIMEOUT_S)


def test_waiting_ends_in_time(app: Celery) -> None:
    """A task that nobody runs is pending; a timeout of 0 is one look."""
    result = AsyncResult("never-sent", app=app)

    assert result.state == states.PENDING
    for timeout_s in (0, 0.05):
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=timeout_s)


def test_a_forgotten_result_is_gone(app: Celery) -> None:
    """For what must not be kept."""
    result = task(app, "add").delay(1, 1)
    result.get(timeout=TIMEOUT_S)

    assert app.backend.task_result_exists(result.id)
    result.forget()

    assert AsyncResult(result.id, app=app).state == states.PENDING
    assert not app.backend.task_result_exists(result.id)


def test_a_revoked_task_says_so(app: Celery) -> None:
    """Revoked before its time came."""
    result = task(app, "add").apply_async((1, 1), countdown=3600)
    while result.id not in worker_state.revoked:  # a broadcast: a worker that does not listen yet never hears of it
        result.revoke()
        threading.Event().wait(0.05)
    late = task(app, "add").apply_async((1, 1), task_id=result.id)

    with pytest.raises(TaskRevokedError):
        late.get(timeout=TIMEOUT_S)
    assert late.state == states.REVOKED


def test_a_success_is_not_overwritten(results: CeleryResults) -> None:
    """A second run of a redelivered message may fail; who has read the first result must not be contradicted."""
    results.store(TaskRow(id="t", state="STARTED", result="null"))
    results.store(TaskRow(id="t", state="FAILURE", result='"first"'))
    results.store(TaskRow(id="t", state="SUCCESS", result='"second"', done_at=1.0))
    results.store(TaskRow(id="t", state="FAILURE", result='"third"'))

    assert [(row.state, row.result) for row in results.tasks(["t", "other"])] == [("SUCCESS", '"second"')]


def test_writes_that_wait_share_a_transaction(results: CeleryResults, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group commit: while one is under way, the others gather; the first does not wait for them."""
    groups: list[int] = []
    entered, go_on = threading.Event(), threading.Event()
    put = celery_rows.put_tasks

    def counting(connection: Any, rows: list[TaskRow]) -> None:
        groups.append(len(rows))
        entered.set()
        assert go_on.wait(TIMEOUT_S)
        put(connection, rows)

    monkeypatch.setattr(celery_rows, "put_tasks", counting)
    rows = [TaskRow(id=f"t{number}", state="SUCCESS", result="1", done_at=1.0) for number in range(21)]
    threads = [threading.Thread(target=results.store, args=(row,)) for row in rows]
    threads[0].start()
    assert entered.wait(TIMEOUT_S)
    for thread in threads[1:]:
        thread.start()
    while len(results._waiting) < 20:
        threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join()

    assert groups == [1, 20]
    assert len(results.tasks([row.id for row in rows])) == 21


def test_one_bad_row_fails_its_own_caller_only(results: CeleryResults) -> None:
    """An id that a database cannot hold must not take its neighbours' results along."""
    results._waiting = [
        held := type(
            "Held", (), {"row": TaskRow(id="good", state="SUCCESS", result="1"), "part": None, "settled": False}
        )()
    ]
    bad: Any = TaskRow(id="bad", state=None, result="1")  # type: ignore[arg-type]

    with pytest.raises(Exception, match=r"(?i)null"):
        results.store(bad)

    assert held.settled
    assert [row.id for row in results.tasks(["good", "bad"])] == ["good"]


# --- canvas ---


def test_a_chain(app: Celery) -> None:
    """Each result is the next one's argument, and a failure ends it."""
    add = task(app, "add")
    result = chain(add.s(1, 2), add.s(3), add.s(4))()
    assert result.get(timeout=TIMEOUT_S) == 10
    assert result.parent.get(timeout=TIMEOUT_S) == 6

    broken = chain(add.s(1, 2), task(app, "fail").si("midway"), add.s(4))()
    with pytest.raises(ValueError, match="midway"):
        broken.get(timeout=TIMEOUT_S)


def test_a_group_is_joined_in_order(app: Celery) -> None:
    """One query a look, however many members; saved and restored by its id."""
    add = task(app, "add")
    result = group(add.s(n, n) for n in range(30)).apply_async()

    assert result.get(timeout=TIMEOUT_S) == [2 * n for n in range(30)]
    result.save()
    restored = GroupResult.restore(result.id, app=app)
    assert restored.completed_count() == 30
    restored.delete()
    assert GroupResult.restore(result.id, app=app) is None


@pytest.mark.long
@pytest.mark.parametrize("width", [1, 200])
def test_a_chord_runs_its_body_once_with_the_headers_results(app: Celery, width: int) -> None:
    """In the header's order, however its parts came back."""
    add, total = task(app, "add"), task(app, "total")
    header = [add.s(n, 0) for n in range(width)]
    assert chord(header)(total.s()).get(timeout=TIMEOUT_S) == sum(range(width))
    assert chord(header)(task(app, "keep").s()).get(timeout=TIMEOUT_S) == width
    assert app.kept == [list(range(width))]


def test_a_chord_with_a_failing_header_tells_its_body(app: Celery) -> None:
    """The body is not run; whoever waits for it learns which part failed of what."""
    header = [task(app, "add").s(1, 1), task(app, "fail").s("a part"), task(app, "add").s(2, 2)]

    result = chord(header)(task(app, "total").s())

    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('a part'\)"):
        result.get(timeout=TIMEOUT_S, follow_parents=False)
    with pytest.raises(ValueError, match="a part"):
        result.get(timeout=TIMEOUT_S)


def test_the_parents_error_is_raised_also_if_the_body_is_told_first(app: Celery) -> None:
    """Both are stored when a wait looks for the first time: the task's own exception is raised, not the chord's."""
    result = chord([task(app, "fail").s("a part")])(task(app, "total").s())
    with pytest.raises(ChordError):
        result.get(timeout=TIMEOUT_S, follow_parents=False)

    again = result_from_tuple(result.as_tuple(), app=app)

    with pytest.raises(ValueError, match="a part"):  # as `get` waits after its own look at the parents
        app.backend.wait_for(again.id, on_interval=again._maybe_reraise_parent_error)


def test_a_wait_asks_for_many_parents_in_one_query(
    broker_url: str, store: Store, store_url: str, results: CeleryResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chord's body has as many as its header has tasks; they are read one by one at the first look only."""
    app, asked = make_app(broker_url, store_url), []
    tasks = CeleryResults.tasks
    monkeypatch.setattr(CeleryResults, "tasks", lambda self, ids: asked.append(len(ids)) or tasks(self, ids))
    body = AsyncResult("body", app=app, parent=GroupResult("g", [AsyncResult(f"t{n}", app=app) for n in range(50)]))

    parents = body._maybe_reraise_parent_error
    assert list(app.backend.get_many(["body"], on_interval=parents, max_iterations=3)) == []
    assert asked == [1] * 51 + [51] * 2

    results.store(TaskRow(id="t7", state="FAILURE", result=FAILED))
    with pytest.raises(ValueError, match="of task 7"):
        body.get(timeout=TIMEOUT_S)
    app.close()
    close_shared(store_url)


def test_a_header_from_a_generator_is_sent_while_it_is_made(app: Celery) -> None:
    """The first task has run before the generator ends."""
    add = task(app, "add")

    def header() -> Iterator[Any]:
        yield task(app, "first").s()
        yield from (add.s(n, 0) for n in range(4))
        assert app.first_ran.wait(TIMEOUT_S)
        yield add.s(10, 0)

    assert chord(header(), app=app)(task(app, "total").s()).get(timeout=TIMEOUT_S) == 17


def test_groups_from_a_generator_keep_their_structure_or_are_refused(app: Celery) -> None:
    """Celery's Redis backend gives their results flat, in any order."""
    add, keep = task(app, "add"), task(app, "keep")
    groups = (group(add.s(n, 0), add.s(n, 1)) for n in (10, 20))
    assert chord(groups, app=app)(keep.s()).get(timeout=TIMEOUT_S) == 2
    assert app.kept == [[[10, 11], [20, 21]]]

    first, pair = add.s(1, 0), group(add.s(2, 0), add.s(3, 0))
    sent = [first.freeze(), *pair.freeze().results]
    with pytest.raises(ValueError, match="contains a group; pass a list"):
        chord((part for part in (first, pair, add.s(4, 0))), app=app)(keep.s())
    assert [result.get(timeout=TIMEOUT_S) for result in sent] == [1, 2, 3]
    while worker_state.reserved_requests:  # they still return their parts
        threading.Event().wait(0.01)


def test_chords_of_groups_and_of_chords(app: Celery) -> None:
    """A group in a header comes as a list; a chord as a step of a chain gives its body's result on."""
    add, total = task(app, "add"), task(app, "total")
    nested = chord([add.s(1, 1), chain(add.s(1, 1), add.s(3))])(total.s())
    assert nested.get(timeout=TIMEOUT_S) == 7

    step = chain(group(add.s(n, 1) for n in range(5)), total.s(), add.s(100))()
    assert step.get(timeout=TIMEOUT_S) == 115

    of_chords = chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(0, 1)])(total.s())
    assert of_chords.get(timeout=TIMEOUT_S) == 7


def test_a_task_in_a_header_may_replace_itself(app: Celery) -> None:
    """What it is replaced by returns in its place."""
    result = chord([task(app, "first_of").s(4), task(app, "add").s(1, 1)])(task(app, "total").s())

    assert result.get(timeout=TIMEOUT_S) == 7


def part(number: int, **changes: Any) -> ChordPart:
    given = {"chord": "c", "task": f"t{number}", "position": number, "state": "SUCCESS", "result": str(number)}
    return ChordPart(**{**given, **changes})


def test_a_late_copy_of_a_part_counts_once(results: CeleryResults) -> None:
    """Redelivery must neither complete a chord too early nor send its body twice."""
    results.set_chord_size("c", 2)

    assert [results.return_part(part(1)), results.return_part(part(1)), results.return_part(part(0))] == [
        False,
        False,
        True,
    ]
    assert results.chord_parts("c") == [("t0", "SUCCESS", "0"), ("t1", "SUCCESS", "1")]
    assert not results.return_part(part(0))  # claimed
    results.finish_chord("c")
    assert not results.return_part(part(0))  # done
    assert results.chord_parts("c") == []


@pytest.mark.usefixtures("store")
def test_a_body_that_was_claimed_and_not_sent_is_claimed_again(store_url: str) -> None:
    """Its claimant was killed in between; the copy of the last part that Celery delivers again sends it."""
    results = CeleryResults(store_url, claim_s=-1.0)
    results.open()
    results.set_chord_size("c", 1)

    assert results.return_part(part(0))
    assert results.return_part(part(0))
    results.close()


def test_a_claim_whose_commit_was_not_answered_is_known_again(
    results: CeleryResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the commit was applied: the next try of the part sends the body, and no other."""
    results.set_chord_size("c", 1)
    write = Database.write

    @contextmanager
    def unanswered(database: Database, *weight: Any) -> Iterator[Any]:
        with write(database, *weight) as connection:
            yield connection
        raise StoreUnavailable("the connection was lost")

    with monkeypatch.context() as lost:
        lost.setattr(Database, "write", unanswered)
        with pytest.raises(StoreUnavailable):
            results.return_part(part(0))
    assert results.return_part(part(0))
    assert not results.return_part(part(0))


def test_of_two_copies_of_a_part_in_a_transaction_one_completes_the_chord(results: CeleryResults) -> None:
    results.set_chord_size("c", 1)
    copies = [_Write(part=part(0)), _Write(part=part(0))]

    results._write(copies)

    assert [copy.completes for copy in copies] == [False, True]


def test_a_thread_that_is_stopped_while_it_writes_for_others_stops_only_itself(
    results: CeleryResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by gevent's Timeout. The other threads' writes fail in a way that Celery tries again."""
    commit, outcomes = results._commit, dict[str, BaseException | None]()
    begun, joined, stopped = threading.Event(), threading.Event(), threading.Event()

    def stop_once(group: Any) -> Any:
        if stopped.is_set():
            return commit(group)
        if not begun.is_set():  # the first thread's own write: meanwhile two others line up
            begun.set()
            joined.wait()
            return commit(group)
        stopped.set()
        raise KeyboardInterrupt

    def store(id_: str) -> None:
        outcomes[id_] = None
        try:
            results.store(TaskRow(id=id_, state="SUCCESS", result="1"))
        except BaseException as error:  # noqa: BLE001 - it is what the thread was stopped with
            outcomes[id_] = error

    monkeypatch.setattr(results, "_commit", stop_once)
    threads = [threading.Thread(target=store, args=(id_,)) for id_ in ("first", "second", "third")]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    while len(results._waiting) < 2:
        time.sleep(0.001)
    joined.set()
    for thread in threads:
        thread.join()

    assert outcomes["first"] is None
    others = {type(outcomes["second"]), type(outcomes["third"])}
    assert others == {KeyboardInterrupt, StoreUnavailable}
    results.store(TaskRow(id="second", state="SUCCESS", result="1"))


def test_a_chords_id_may_be_used_again(results: CeleryResults) -> None:
    """A frozen chord that is applied a second time is a second run."""
    for _ in range(2):
        results.set_chord_size("c", 1)
        assert results.return_part(part(0))
        results.finish_chord("c")


def test_a_chord_may_grow_and_learn_its_size_late(results: CeleryResults) -> None:
    """Parts of a header from a generator return before its end is known."""
    assert not results.return_part(part(0))
    results.add_to_chord("c")
    results.set_chord_size("c", 2)

    assert not results.return_part(part(1))
    assert results.return_part(part(2))


def test_parts_returned_by_many_threads_complete_it_once(results: CeleryResults) -> None:
    """The counter decides, under a lock in the database."""
    results.set_chord_size("c", 64)
    completed: list[bool] = []

    threads = [threading.Thread(target=lambda n=n: completed.append(results.return_part(part(n)))) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(completed) == [False] * 63 + [True]


PREFORKED = """
import os
from celery import Celery
app = Celery("own", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.worker_hijack_root_logger = False

@app.task(name="own.where")
def where(number):
    return [number, os.getpid()]

# the parent has connections of its own before it forks
app.backend.get_task_meta("before the fork")
"""


@pytest.mark.long
def test_forked_workers_have_connections_of_their_own(
    broker_url: str, store: Store, store_url: str, tmp_path: Path
) -> None:
    """Celery's default pool forks; a connection or a lock that parent and child share would ruin both.

    The sender knows the tasks by name only.
    """
    (tmp_path / "own.py").write_text(PREFORKED)
    environment = {**os.environ, "BROKER": broker_url, "BACKEND": f"argosy+{store_url}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "celery", "-A", "own", "worker", "--pool", "prefork", "-c", "2", "-l", "ERROR"]
    app = Celery("sender", broker=broker_url, backend=f"argosy+{store_url}", set_as_current=False)
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        sent = [app.send_task("own.where", args=[number]) for number in range(40)]
        answers = [result.get(timeout=TIMEOUT_S) for result in sent]
    finally:
        worker.terminate()
        worker.wait()
        app.close()
        close_shared(store_url)

    assert [number for number, _ in answers] == list(range(40))
    assert worker.pid not in {pid for _, pid in answers}


# --- settings and expiry ---


def test_extended_results_tell_what_was_called(broker_url: str, store: Store, store_url: str) -> None:
    """With `result_extended`: name, arguments, worker, queue."""
    app = make_app(broker_url, store_url, result_extended=True)
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=TIMEOUT_S):
        result = task(app, "add").delay(2, y=3)
        assert result.get(timeout=TIMEOUT_S) == 5
        assert result.name.endswith(".add")
        assert (result.args, result.kwargs, result.queue) == ([2], {"y": 3}, "celery")
    app.close()
    close_shared(store_url)


def test_old_results_expire(broker_url: str, store: Store, store_url: str, results: CeleryResults) -> None:
    """`celery beat` calls this once a day."""
    now = time.time()
    for name, age_s in (("old", 7200), ("new", 60)):
        results.store(TaskRow(id=name, state="SUCCESS", result="1", done_at=now - age_s))
    results.store(TaskRow(id="running", state="STARTED", result="null"))
    app = make_app(broker_url, store_url, result_expires=3600)

    app.backend.cleanup()

    assert sorted(row.id for row in results.tasks(["old", "new", "running"])) == ["new", "running"]
    app.close()
    close_shared(store_url)


def test_a_purge_deletes_old_results_too(results: CeleryResults, store: Store) -> None:
    """By the same age as jobs, if an operator gives one; nodes leave them to `result_expires`."""
    now = time.time()
    for name, age_s in (("old", 7200), ("new", 60)):
        results.store(TaskRow(id=name, state="SUCCESS", result="1", done_at=now - age_s))

    assert store.retention.purge().celery_results == 0
    assert store.retention.purge(finished_before=now - 3600).celery_results == 1

    assert [row.id for row in results.tasks(["old", "new"])] == ["new"]


def test_only_json_is_stored(broker_url: str, store_url: str) -> None:
    """Pickle in a database is code that anybody with access to it can have run."""
    app = make_app(broker_url, store_url, result_serializer="pickle")

    with pytest.raises(ImproperlyConfigured, match="stores JSON only, not pickle"):
        _ = app.backend
    app.close()


def test_a_database_without_the_tables_names_the_command(broker_url: str, store_url: str) -> None:
    """Nothing is created behind anybody's back."""
    app = make_app(broker_url, store_url)

    with pytest.raises(SchemaMismatch, match="argosy migrate"):
        app.backend.get_task_meta("t")
    app.close()
    close_shared(store_url)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_results_are_plain_rows(app: Celery, store_url: str) -> None:
    """Whoever has SQL can read them."""
    result = task(app, "add").delay(2, 3)
    result.get(timeout=TIMEOUT_S)

    database = sqlite3.connect(store_url.removeprefix("sqlite:///"))
    assert database.execute("SELECT state, result FROM celery_tasks").fetchall() == [("SUCCESS", "5")]
    database.close()


def test_a_task_may_wait_for_another(app: Celery) -> None:
    """Discouraged, and done: by a thread of the worker itself."""
    assert task(app, "waits").delay().get(timeout=TIMEOUT_S) == 3
