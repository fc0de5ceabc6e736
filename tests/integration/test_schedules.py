"""Submissions by the clock: one run for a time, whoever takes it, whatever the clocks do, and however often it breaks off."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import fsspec
import msgspec
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text, update

from producers.client.client import Client
from producers.client.request import NewItem
from producers.client.sending import intake
from producers.commands.main import main
from producers.commands.scheduling import due_runs
from producers.commands.scheduling.due_runs import submit_due, submit_taken
from producers.commands.scheduling.schedule_times import Timing, planned
from producers.commands.scheduling.scheduled_run import ScheduledSubmission, run_key, submit_run
from producers.commands.submit import SourceOptions
from producers.sources import Source
from producers.wire.errors import InvalidInput
from producers.wire.outside.allowed_places import AllowedPlaces
from results_store.records import NewJob
from results_store.sql.database import Weight
from results_store.sql.schema import schedule_runs
from results_store.sql.waiting.schedules import LEASE_S, Planned, Schedule, TakenRun
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.rows import run_together
from workers.node.scheduling import scheduled_submissions
from workers.node.scheduling.scheduled_submissions import ScheduledSubmissions, environment_of

HERE = platform.node()

#: The machine's files: for tests of other things than what may be read.
ANYWHERE = AllowedPlaces(("/",))

#: A whole minute, some days before the tests run.
MINUTE = 1_700_000_040.0


@pytest.fixture
def client(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)
    with Client(broker_url, store_url) as client:
        yield client


def submission(where: Path | str) -> str:
    given = dict.fromkeys(SourceOptions.__struct_fields__) | {
        "where": (str(where),),
        "tasks": ("sentiment",),
        "priority": "bulk",
        "input_columns": (),
        "send_paths": False,
        "on_error": "stop",
        "tenant": "acme",
    }
    described = ScheduledSubmission(timing=Timing(cron="* * * * *"), rows=SourceOptions(**given))  # type: ignore[arg-type]
    return msgspec.json.encode(described).decode()


def add(
    store: Store, where: Path | str = "/nowhere", *, next_at: float = MINUTE, name: str = "s", **changes: object
) -> None:
    new = Schedule(name=name, submission=submission(where), next_at=next_at, **changes)  # type: ignore[arg-type]
    assert store.schedules.add(new)


def times(store: Store, *states: str) -> list[float]:
    return [run.planned_at - MINUTE for run in store.schedules.runs("s", 100) if run.state in (states or ("running",))]


def take(store: Store, at: float, runner: str = "n", host: str = HERE) -> TakenRun | None:
    """What a node does whose store's clock shows `at` seconds after MINUTE."""
    return store.schedules.take(host, runner, planned, now=MINUTE + at)


def take_later(store: Store, attempt: int) -> TakenRun | None:
    """What a node does once the lease of the attempt before is over."""
    now = MINUTE + 1 if not attempt else store.now() + 1e4 * attempt
    return store.schedules.take(HERE, f"n{attempt}", planned, now=now)


def test_two_nodes_and_a_clock_that_is_stepped_over_the_minute_give_one_run(store: Store, store_url: str) -> None:
    add(store)
    with Store(store_url) as other:
        assert take(other, -1.0) is None
        assert take(other, 0.5, "a") is not None, "the clock was stepped forward"
        assert take(store, 0.5, "b") is None
        assert (take(store, -30.0, "b"), take(other, -30.0, "a")) == (None, None), "and back"
        assert store.schedules.every()[0].next_at == MINUTE, "the minute comes again"
        assert (take(store, 0.2, "b"), take(other, 0.2, "a")) == (None, None)
        assert times(store) == [0.0]
        assert take(other, 60.0, "a") is not None
        assert (take(store, 60.0, "b"), times(store)) == (None, [60.0, 0.0])


def test_a_clock_that_was_a_year_ahead_holds_nothing_back(store: Store) -> None:
    year = 365 * 86400.0
    add(store)
    run = take(store, year)
    assert run is not None
    store.schedules.end(run, "done")
    assert take(store, 20.0) is None
    assert store.schedules.every()[0].next_at == MINUTE + 60
    assert take(store, 60.0) is not None
    assert times(store, "done", "running") == [year, 60.0]


def test_nodes_that_look_at_the_same_moment_share_what_is_due(store: Store, store_url: str) -> None:
    for number in range(12):
        add(store, name=f"s{number}")
    taken: list[str] = []

    def node(number: int) -> None:
        with Store(store_url) as own:
            while run := take(own, 1.0, f"node{number}"):
                taken.append(run.schedule.name)

    run_together(node, 4)
    while run := take(store, 1.0):  # what one passed over while another held it
        taken.append(run.schedule.name)
    assert sorted(taken) == sorted(f"s{number}" for number in range(12))


def test_what_no_node_here_can_plan_stops_no_other_schedule(
    client: Client, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A time zone of newer tables, a newer form of the description: other nodes may have them."""
    source = tmp_path / "rows.txt"
    source.write_text("a")
    add(store, source, name="a", next_at=1.0)
    good = store.schedules.every()[0].submission
    for name, old, new in (
        ("mars", '* * * * *"', '* * * * *","zone":"Mars/One"'),
        ("newer", '"rows":', '"v":2,"rows":'),
    ):
        changed = good.replace(old, new)
        assert changed != good
        assert store.schedules.add(Schedule(name=name, submission=changed, next_at=0.5))
    assert store.schedules.add(Schedule(name="no-json", submission="{", next_at=0.5))
    assert submit_due(client, ANYWHERE) == {"mars", "newer"}
    assert [one.state for one in store.schedules.runs("a")] == ["done"]
    assert [store.schedules.runs(name) for name in ("mars", "newer", "no-json")] == [[], [], []]
    assert "schedule mars is left to other nodes: zone: 'Mars/One' is no time zone here" in caplog.text
    assert "schedule newer is left to other nodes: Object contains unknown field `v`" in caplog.text


def test_a_run_that_ends_its_processes_ends_and_its_neighbours_do_not(
    client: Client, store: Store, tmp_path: Path
) -> None:
    """The kernel ends a process without a word; so attempts are counted when a run is taken."""
    source = tmp_path / "rows.txt"
    source.write_text("a")
    add(store, source)
    for attempt in range(due_runs.MOST_ATTEMPTS):
        run = take_later(store, attempt)
        assert run is not None
        assert (run.attempts, run.needs_solitude) == (attempt, attempt >= 2)
    add(store, source, name="other", next_at=1.0)
    later = store.now() + 1e5
    assert store.schedules.take(HERE, "n", planned, now=later, alone=False) is None, "it waits for its solitude"
    run = store.schedules.take(HERE, "n", planned, now=later)
    assert run is not None
    assert run.needs_solitude
    submit_taken(client, run, ANYWHERE)
    (ended,) = store.schedules.runs("s")
    assert (ended.state, ended.attempts, ended.job) == ("failed", due_runs.MOST_ATTEMPTS + 1, None)
    assert re.match(r"its process died: 10 attempts were begun, .* split the source", ended.error or "")
    other = store.schedules.take(HERE, "n", planned, now=later, alone=False)
    assert other is not None
    assert other.schedule.name == "other"


def test_a_run_that_ended_its_processes_has_its_process_for_itself(
    client: Client, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("a")
    add(store, source)
    for attempt in range(3):
        assert take_later(store, attempt) is not None
    with store._database.write(Weight.NOTE) as connection:
        connection.execute(update(schedule_runs).values(leased_until=1.0))
    assert store.schedules.pause("s")
    add(store, source, name="other", next_at=1.0)
    beside, other_began = [], threading.Event()

    def submit(client: Client, run: TakenRun, allowed: AllowedPlaces) -> str:
        if run.schedule.name == "s":
            beside.append(other_began.wait(1.0))
        else:
            other_began.set()
        return submit_run(client, run, allowed)

    monkeypatch.setattr(due_runs, "submit_run", submit)
    submit_due(client, ANYWHERE)
    assert (beside, other_began.is_set()) == ([False], True)
    assert [store.schedules.runs(name)[0].state for name in ("s", "other")] == ["done", "done"]


def test_a_run_that_was_postponed_needs_no_solitude(store: Store) -> None:
    """Its process lives: others need not wait for its file."""
    add(store)
    for attempt in range(5):
        run = take_later(store, attempt)
        assert run is not None
        assert not run.needs_solitude
        store.schedules.postpone(run, 1.0, "absent.txt does not exist")


def test_of_several_missed_times_the_newest_is_run_once(store: Store) -> None:
    add(store)
    run = take(store, 3600.0 + 10)
    assert (run and run.planned_at, take(store, 3600.0 + 10)) == (MINUTE + 3600, None)
    assert store.schedules.every()[0].next_at == MINUTE + 3660


def test_a_run_over_its_starting_deadline_is_skipped_and_said(store: Store) -> None:
    add(store, starting_deadline_s=20.0)
    assert take(store, 30.0) is None
    (run,) = store.schedules.runs("s")
    assert (run.state, run.error) == ("skipped", "nobody could begin it within 20 s; it is 30 s late")
    assert take(store, 79.0) is not None


def test_a_local_source_is_left_to_its_machine(store: Store) -> None:
    add(store, host="elsewhere", next_at=1.0)
    assert not store.schedules.due(HERE)
    assert store.schedules.due("elsewhere")
    assert take(store, 1.0) is None
    assert [one.name for one in store.schedules.late(60.0)] == ["s"]
    assert take(store, 1.0, host="elsewhere") is not None


def test_a_paused_schedule_has_no_run_and_leaves_out_what_passed(store: Store) -> None:
    add(store)
    assert store.schedules.pause("s")
    assert take(store, 1.0) is None
    now = store.now()
    assert store.schedules.resume("s", planned)
    assert now < (store.schedules.every()[0].next_at or 0.0) <= now + 61
    assert times(store) == []


def test_a_run_is_submitted_once_and_its_job_is_named(client: Client, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("\n".join("abcdef"))
    add(store, source, next_at=1.0)
    submit_due(client, ANYWHERE)
    (run,) = store.schedules.runs("s", 10)
    job = store.job(run.job or "")
    assert (run.state, run.error, job.items, job.tenant, job.name) == ("done", None, 6, "acme", "s")
    submit_due(client, ANYWHERE)
    assert len(store.jobs()) == 1
    assert not store.schedules.due(HERE)


def test_the_secret_of_a_url_in_an_error_is_not_kept(
    client: Client, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("403, url='https://h/a.csv?sig=SECRET'")
    monkeypatch.setattr(due_runs, "submit_run", Mock(side_effect=error))
    add(store, tmp_path / "rows.txt")
    run = take(store, 1.0)
    assert run is not None
    submit_taken(client, run, ANYWHERE)
    (ended,) = store.schedules.runs("s")
    assert ended.error == "RuntimeError: 403, url='https://h/a.csv'"


def test_an_attempt_that_breaks_off_is_continued_by_another_node(client: Client, store: Store, tmp_path: Path) -> None:
    """The rows that were accepted are not added again."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"text": "{row}"}}\n' for row in "abcde") + "{broken\n")
    add(store, source)
    run = take(store, 1.0)
    assert run is not None
    submit_taken(client, run, ANYWHERE)
    (broken,) = store.schedules.runs("s")
    assert (broken.state, broken.attempts) == ("running", 1)
    assert re.search(r"^InvalidInput: .*rows.jsonl:6: ", broken.error or "")
    job = store.job(broken.job or "")
    assert job.items == 4
    source.write_text("".join(f'{{"text": "{row}"}}\n' for row in "abcdef"))
    store.schedules.renew(run)  # it has lost the run: this changes nothing

    again = store.schedules.take(HERE, "another", planned, now=store.now() + LEASE_S / 2)
    assert again is not None
    assert (again.planned_at, again.attempts, again.job) == (run.planned_at, 1, job.id)
    submit_taken(client, again, ANYWHERE)
    assert (store.job(job.id).items, store.schedules.runs("s")[0].state) == (6, "done")
    assert len(store.jobs()) == 1


def test_a_run_whose_job_was_purged_before_its_end_was_noted_is_not_submitted_again(
    client: Client, store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("a")
    add(store, source)
    run = take(store, 1.0)
    assert run is not None
    store.schedules.renew(run, "gone")
    again = store.schedules.take(HERE, "another", planned, now=store.now() + 2 * LEASE_S)
    assert again is not None
    assert (submit_run(client, again, ANYWHERE), store.jobs()) == ("gone", [])


def test_a_source_that_changed_in_between_fails_by_name(client: Client, store: Store, tmp_path: Path) -> None:
    """Half of one file and half of another would be a job that nobody wanted."""
    source = tmp_path / "rows.txt"
    source.write_text("\n".join("abcdef"))
    add(store, source)
    key = run_key("s", MINUTE)
    client.submit_many("sentiment", ["x", "y", "z", "w"], idempotency_key=key, tenant="acme")
    run = take(store, 1.0)
    assert run is not None
    submit_taken(client, run, ANYWHERE)
    (failed,) = store.schedules.runs("s")
    assert failed.state == "failed"
    assert re.search("KeyConflict: .* rows differ", failed.error or "")


def test_a_run_that_can_never_be_submitted_ends(client: Client, store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "absent.txt")
    for attempt in range(due_runs.MOST_ATTEMPTS):
        run = store.schedules.take(HERE, f"n{attempt}", planned, now=MINUTE + 1 if not attempt else store.now() + 62)
        assert run is not None
        submit_taken(client, run, ANYWHERE)
    (failed,) = store.schedules.runs("s")
    assert (failed.state, failed.attempts) == ("failed", due_runs.MOST_ATTEMPTS)
    assert re.search("absent.txt: does not exist; check the path", failed.error or "")


#: Submits what is due, and dies as soon as the first rows are accepted.
DIES = """
import os, signal
from producers.client.sending import intake
from producers.commands.scheduling import due_runs
from results_store.sql.waiting.schedules import Schedules
intake.CHUNK_ITEMS = 4
renew = Schedules.renew
Schedules.renew = lambda *given: (renew(*given), os.kill(os.getpid(), signal.SIGKILL))
due_runs.main()
"""


def test_a_killed_process_is_followed_by_another(
    client: Client, store: Store, store_url: str, broker_url: str, tmp_path: Path
) -> None:
    """It is killed between two chunks of its rows; the second process adds the rest alone."""
    source = tmp_path / "rows.txt"
    source.write_text("\n".join("abcdef"))
    add(store, source, next_at=1.0)

    def process(*command: str) -> int:
        environment = environment_of(broker_url, store_url)
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as started:
            return started.wait()

    assert process(sys.executable, "-c", DIES, str(tmp_path)) == -signal.SIGKILL
    (run,) = store.schedules.runs("s")
    assert run.job is not None
    assert (store.job(run.job).items, run.state) == (4, "running")
    assert store.schedules.pause("s"), "a minute may begin meanwhile; the run goes on"
    assert not store.schedules.due(HERE), "its lease goes on"
    with store._database.write(Weight.NOTE) as connection:
        connection.execute(update(schedule_runs).values(leased_until=1.0))
    assert store.schedules.due(HERE)
    assert process(*scheduled_submissions.COMMAND, str(tmp_path)) == 0
    assert (store.job(run.job).items, store.schedules.runs("s")[0].state, len(store.jobs())) == (6, "done", 1)


def test_a_node_starts_the_process_that_submits(
    client: Client, store: Store, store_url: str, broker_url: str, tmp_path: Path
) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("a\nb\n")
    add(store, source, next_at=1.0)
    node = ScheduledSubmissions(store, environment_of(broker_url, store_url), [str(tmp_path)])
    try:
        node.look()
        until(lambda: store.schedules.runs("s") and store.schedules.runs("s")[0].state == "done")
        while node._process is not None:
            assert node._process.wait(30) == 0
            node.look()
    finally:
        node.stop()
    assert [job.items for job in store.jobs()] == [2]


def test_the_process_ends_with_its_worker(store: Store, store_url: str, broker_url: str, tmp_path: Path) -> None:
    """However the worker ends: the kernel closes its end of the pipe."""
    source = tmp_path / "rows"
    os.mkfifo(source)  # nobody writes: the run never ends by itself
    add(store, source, next_at=1.0)
    node = ScheduledSubmissions(store, environment_of(broker_url, store_url), [str(tmp_path)])
    node.look()
    process = node._process
    assert process is not None
    assert process.stdin is not None
    until(lambda: store.schedules.runs("s"))
    process.stdin.close()
    assert process.wait(30) == 1


def test_old_runs_are_purged(store: Store) -> None:
    """Their errors may quote a row."""
    add(store)
    run = take(store, 1.0)
    assert run is not None
    store.schedules.end(run, "failed", error="a.csv:3: 'secret' is no number")
    store.retention.purge(finished_before=store.now() - 60)
    assert len(store.schedules.runs("s")) == 1
    store.retention.purge(finished_before=store.now() + 60)
    assert store.schedules.runs("s") == []


def test_a_schedule_that_is_removed_while_its_run_is_taken_leaves_no_run(store: Store, store_url: str) -> None:
    add(store)
    removed: list[bool] = []

    def remove() -> None:
        with Store(store_url) as other:
            removed.append(other.schedules.remove("s"))

    remover = threading.Thread(target=remove)

    def slow_plan(schedule: Schedule, now: float) -> Planned:
        remover.start()
        if store_url.startswith("postgresql"):
            with store._database.read() as connection:
                waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                until(lambda: connection.execute(waits).scalar_one())
        return planned(schedule, now)

    assert store.schedules.take(HERE, "n", slow_plan, now=MINUTE + 1) is not None
    remover.join()
    assert (removed, store.schedules.every(), store.schedules.runs("s")) == ([True], [], [])


# --- what a worker's machine may read ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a source, beside a secret and the ways to it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "rows.txt").write_text("a")
    (tmp_path / "secret.txt").write_text("key")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    return root


@pytest.mark.parametrize(
    "where",
    [
        "{0}/../secret.txt", "{0}/link.txt", "{0}/folder/secret.txt", "{0}/folder/*.txt", "{0}/*/../../*.txt",
        "{0}-too/rows.txt", "rows.txt", "-", "file://{0}/rows.txt", "file://{0}/../secret.txt", "local://{0}/rows.txt",
        "filecache::file://{0}/rows.txt", "https://logs.example/a/x::file:///etc/passwd", "http://logs.example/a/x.csv",
        "https://logs.example.evil/a/x.csv", "https://logs.example@evil/a/x.csv", "https://logs.example/ab/x.csv",
        "https://logs.example/a/../b", "https://logs.example/a/%2e%2E/b", "https://logs.example/a/%252e%252e/b",
        "https://logs.example/a/.\t./b", "https://logs.example/a", "HTTPS://logs.example/a/x.csv", "s3://logs-too/x",
        "http://169.254.169.254/latest/meta-data", "memory://x", "{0}/circle", "s3://logs/%" + 500_000 * "25",
    ],
)  # fmt: skip
def test_a_schedule_of_another_place_is_left_alone(root: Path, where: str) -> None:
    """Whoever has the store's password writes the row; the worker's machine opens its own places alone."""
    allowed = AllowedPlaces((str(root), "https://logs.example/a/", "s3://logs/"))
    allowed.check("schedules")
    assert not allowed.may_read(submission(where.format(root)))
    assert not AllowedPlaces().may_read(submission(f"{root}/rows.txt"))


@pytest.mark.parametrize(
    "where",
    [
        "{0}/rows.txt",
        "{0}/*.txt",
        "{0}",
        "{0}/{{planned_at:%Y}}.txt",
        "https://logs.example/a/x.csv?v=1",
        "s3://logs/x",
    ],
)
def test_a_schedule_of_an_allowed_place_is_run(root: Path, where: str) -> None:
    allowed = AllowedPlaces((str(root), "https://logs.example/a/", "s3://logs/"))
    assert allowed.may_read(submission(where.format(root)))
    assert allowed.names(submission(where.format(root)))


def test_a_node_leaves_runs_that_it_may_not_read_to_others(
    client: Client, store: Store, store_url: str, broker_url: str, root: Path, tmp_path: Path
) -> None:
    add(store, tmp_path / "secret.txt", name="other", next_at=1.0)
    for places in ([], [str(root)]):
        node = ScheduledSubmissions(store, environment_of(broker_url, store_url), places)
        node.look()
        assert node._process is None
    add(store, root / "rows.txt", next_at=2.0)
    assert submit_due(client, AllowedPlaces((str(root),))) == set()
    assert [run.state for run in store.schedules.runs("s")] == ["done"]
    assert store.schedules.runs("other") == []
    assert [one.name for one in store.schedules.due(HERE)] == ["other"]


@pytest.mark.parametrize("where", ["link.txt", "l*.txt", "{planned_at:..}/secret.txt"])
def test_no_run_opens_what_lies_outside(client: Client, store: Store, root: Path, where: str) -> None:
    """Also where the name alone does not tell."""
    add(store, f"{root}/{where}")
    run = take(store, 1.0)
    assert run is not None
    with pytest.raises(InvalidInput, match="is not a source of schedules that this worker may read"):
        submit_run(client, run, AllowedPlaces((str(root),)))
    assert store.jobs() == []


@pytest.mark.parametrize(
    "named",
    [
        "../secret.txt",
        "{0}/secret.txt",
        "link.txt",
        "file://{0}/secret.txt",
        "memory://a",
        "filecache::file://{0}/secret.txt",
    ],
)
def test_no_row_of_an_allowed_file_opens_what_lies_outside(root: Path, tmp_path: Path, named: str) -> None:
    """A table may name its pictures anywhere."""
    (root / "inside.png").write_bytes(b"picture")
    table = root / "pictures.jsonl"
    table.write_text("".join(json.dumps({"path": name}) + "\n" for name in ("inside.png", named.format(tmp_path))))
    inside, other = Source(str(table), "image", allowed=AllowedPlaces((str(root),))).rows()
    assert isinstance(inside, NewItem)
    assert isinstance(other, InvalidInput)
    assert other.problem.endswith("is not a source of schedules that this worker may read")


def test_no_link_in_an_allowed_folder_is_followed_outside(root: Path, tmp_path: Path) -> None:
    (root / "inside.png").write_bytes(b"picture")
    (root / "other.png").symlink_to(tmp_path / "secret.txt")
    inside, other = Source(str(root), "image", allowed=AllowedPlaces((str(root),))).rows()
    assert isinstance(inside, NewItem)
    assert isinstance(other, InvalidInput)


def test_files_beside_a_remote_table_are_those_below_it() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/logs/a/t.jsonl": b'{"path": "in.png"}\n{"path": "../out.png"}\n{"path": "memory://logs/b.png"}\n'})
    fs.pipe({"/logs/a/in.png": b"in", "/logs/out.png": b"out", "/logs/b.png": b"out"})
    try:
        rows = list(Source("memory://logs/a/t.jsonl", "image", allowed=AllowedPlaces(("memory://logs/a/",))).rows())
    finally:
        fs.rm("/logs", recursive=True)
    assert [type(row) for row in rows] == [NewItem, InvalidInput, InvalidInput]


# --- the commands ---


#: Of a schedule that no live node may run.
UNREAD = r"argosy: no running worker may read its source, .*: start a worker .* `\[worker\] schedules = .*`\n"


@pytest.fixture
def cli(sqlite_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store = Store(sqlite_url)
    store.migrate()
    store.close()
    monkeypatch.setenv("ARGOSY_STORE_URL", sqlite_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("a\n")
    return tmp_path


def argosy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["schedule", *arguments])


def test_a_schedule_is_added_listed_paused_and_removed(cli: Path) -> None:
    added = argosy("add", "nightly", "rows.txt", "-t", "topic", "--cron", "30 2 * * *", "--zone", "Asia/Tokyo")
    assert re.fullmatch(rf"schedule nightly: next run \d+-\d\d-\d\d 02:30\+0900 on {HERE}\n{UNREAD}", added.stderr)
    assert (
        "already a schedule 'nightly'"
        in argosy("add", "nightly", "rows.txt", "-t", "topic", "--cron", "* * * * *").stderr
    )
    line = argosy("list").stdout
    assert re.search(
        rf"^nightly  30 2 \* \* \* Asia/Tokyo  next .*  topic of {cli}/rows.txt  on {HERE}$", line, re.MULTILINE
    )
    assert json.loads(argosy("list", "--json").stdout)["submission"]["rows"]["tasks"] == ["topic"]
    assert argosy("pause", "nightly").exit_code == 0
    assert "  paused  " in argosy("list").stdout
    assert "nightly goes on: next run" in argosy("resume", "nightly").stderr
    assert argosy("runs", "nightly").stderr == "argosy: it had no run yet\n"
    assert argosy("remove", "nightly").exit_code == 0
    assert "no schedule 'nightly'; there are: none" in argosy("remove", "nightly").stderr


def test_a_schedule_that_is_not_understood_here_hides_no_other(cli: Path) -> None:
    """Of a newer version, with a time zone of other tables, or by hand."""
    assert argosy("add", "nightly", "rows.txt", "-t", "topic", "--cron", "30 2 * * *").exit_code == 0
    with Store(f"sqlite:///{cli / 'argosy.db'}") as store:
        good = store.schedules.every()[0].submission
        for name, changed in (
            ("mars", good.replace('"30 2 * * *"', '"30 2 * * *","zone":"Mars/One"')),
            ("newer", good.replace('"rows":', '"v":2,"rows":')),
            ("no-json", "{"),
        ):
            assert store.schedules.add(Schedule(name=name, submission=changed, next_at=None))
    lines = argosy("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["mars", "newer", "nightly", "no-json"]
    assert "'Mars/One' is no time zone here; write a name such as" in lines[0]
    assert "'newer' has a form that this version does not read: Object contains unknown field `v`" in lines[1]
    shown = [json.loads(line)["submission"] is None for line in argosy("list", "--json").stdout.splitlines()]
    assert shown == [False, True, False, True]
    for name in ("mars", "newer", "no-json"):
        assert argosy("pause", name).exit_code == 0
        resumed = argosy("resume", name)  # the times of a newer form may be known
        assert (resumed.exit_code, resumed.stderr.count("\n")) == (0 if name == "newer" else 1, 1)
        assert argosy("remove", name).exit_code == 0
    assert argosy("add", "..", "rows.txt", "-t", "topic", "--cron", "* * * * *").exit_code == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("rows.txt", "-t", "topic"), "name the times by --cron, or a single one by --at"),
        (("rows.txt", "-t", "topic", "--cron", "* *"), "cron: '. .' has not five fields"),
        (("rows.txt", "-t", "topic", "--cron", "* * * * *", "--zone", "Mars"), "zone: 'Mars' is no time zone"),
        (("rows.txt", "-t", "topic", "--at", "2101-01-01T00:00Z", "--zone", "Mars"), "zone: 'Mars' is no time zone"),
        (("rows.txt", "-t", "topic", "--at", "2001-01-01T00:00"), "--at: .* has passed by the store's clock"),
        (("rows.txt", "-t", "topick", "--at", "2101-01-01"), "task: no task 'topick'; did you mean 'topic'"),
        (("-", "-t", "topic", "--at", "2101-01-01"), "standard input is empty when the run is due"),
        (("rows.txt", "-t", "topic", "--at", "2101-01-01", "--tenant", "a b"), "--tenant: 'a b' is not a valid tenant"),
    ],
)
@pytest.mark.usefixtures("cli")
def test_what_no_run_could_do_is_refused_now(options: tuple[str, ...], problem: str) -> None:
    refused = argosy("add", "s", *options)
    assert refused.exit_code != 0
    assert re.search(problem, refused.stderr)
    assert argosy("list").stderr == "argosy: nothing is scheduled\n"


@pytest.mark.usefixtures("cli")
def test_a_source_may_have_the_time_of_its_run() -> None:
    added = argosy("add", "s", "logs-{planned_at:%Y}.txt", "-t", "topic", "--at", "2101-01-01T05:00", "--shared")
    assert re.fullmatch(rf"schedule s: next run 2101-01-01 05:00\+0000\n{UNREAD}", added.stderr)
    absent = argosy("add", "t", "absent.txt", "-t", "topic", "--at", "2101-01-01T05:00")
    assert "absent.txt does not exist; each run fails unless it is there by then" in absent.stderr


def test_a_run_reads_the_file_of_its_time(client: Client, store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows-2023-11-14.txt").write_text("a\nb\n")
    add(store, tmp_path / "rows-{planned_at:%Y-%m-%d}.txt")
    run = take(store, 1.0)
    assert run is not None
    assert store.job(submit_run(client, run, ANYWHERE)).items == 2
    assert store.find_job(NewJob(id="", priority=9, idempotency_key=run_key("s", MINUTE), tenant="acme"))
