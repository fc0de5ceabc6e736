"""The `argosy` command on real files, a real broker and a real store: what it prints, writes and returns."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from producers.commands import submit_progress
from producers.commands.main import main
from producers.wire import command_line
from producers.wire.publisher import Publisher
from results_store.records import Batch, NewJob
from results_store.sql.database import Weight
from results_store.sql.schema import results
from results_store.store import Store
from tests.integration.rows import new_envelope
from tests.integration.stand_in import FAILS, StandIn
from workers.node import presence

JOB = re.compile(r"^[0-9a-z]{26}$")


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """The command does nothing that depends on the database: one is enough."""
    return sqlite_url


@pytest.fixture(autouse=True)
def environment(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)


@pytest.fixture
def stand_in(broker_url: str, store: Store) -> StandIn:
    return StandIn(broker_url, store)


def argosy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def submitted(*arguments: str | Path) -> str:
    result = argosy("submit", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def test_a_file_is_submitted_followed_and_fetched(tmp_path: Path, stand_in: StandIn) -> None:
    """The whole way of a pipeline: a file goes in, its job's id comes out alone, and a file of results."""
    rows = tmp_path / "reviews.csv"
    rows.write_text("id,review,stars\nx,good,5\ny,bad,1\n")
    job = submitted(rows, "--task", "topic", "--task", "sentiment", "--input-column", "review")
    assert JOB.match(job)
    stand_in.work(1)
    status = argosy("status", job)
    assert "state     finished" in status.stdout
    assert "results   4 of 4: 4 succeeded" in status.stdout
    lines = [json.loads(line) for line in argosy("results", job).stdout.splitlines()]
    assert [(line["key"], line["task"], line["output"][0]["label"]) for line in lines] == [
        ("x", "sentiment", "sentiment of good"),
        ("x", "topic", "topic of good"),
        ("y", "sentiment", "sentiment of bad"),
        ("y", "topic", "topic of bad"),
    ]


def test_results_are_written_as_the_files_name_says(tmp_path: Path, stand_in: StandIn) -> None:
    """A .csv is CSV, a .parquet Parquet; the file appears complete or not at all."""
    rows = tmp_path / "lines.txt"
    rows.write_text(f"good\n{FAILS}\n")
    job = submitted(rows, "--task", "topic")
    unfinished = argosy("results", job, "--output", tmp_path / "early.jsonl")
    assert "the job is not finished: 0 of 2 results" in unfinished.stderr
    stand_in.work(1)
    assert argosy("results", job, "--output", tmp_path / "out.csv").exit_code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        read = [(row["key"], row["state"], row["error_kind"]) for row in csv.DictReader(file)]
    assert read == [("1", "succeeded", ""), ("2", "failed", "InvalidInput")]
    assert argosy("results", job, "--output", tmp_path / "out.parquet").exit_code == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["key"], row["state"], row["error_kind"]) for row in found] == [
        ("1", "succeeded", None),
        ("2", "failed", "InvalidInput"),
    ]
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_formulas_in_csv_are_exact_and_said_or_escaped(tmp_path: Path, stand_in: StandIn) -> None:
    """A key of a stranger: a program reads it as it is, and a spreadsheet does not run it."""
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text\n=1+1,good\n-5,bad\n")
    job = submitted(rows, "--task", "topic")
    stand_in.work(1)
    exact = argosy("results", job, "--output", tmp_path / "exact.csv")
    assert "1 cells begin like a formula" in exact.stderr
    assert "--spreadsheet" in exact.stderr
    escaped = argosy("results", job, "--output", tmp_path / "escaped.csv", "--spreadsheet")
    assert escaped.stderr == ""
    for name, key in (("exact", "=1+1"), ("escaped", "'=1+1")):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert [row["key"] for row in csv.DictReader(file)] == [key, "-5"]
    other = argosy("results", job, "--spreadsheet")
    assert (other.exit_code, other.stdout) == (2, "")
    assert "--spreadsheet is for CSV" in other.stderr
    joined = argosy("submit", rows, "--task", "topic", "--output", tmp_path / "joined.csv", "--spreadsheet")
    assert joined.exit_code == 0
    assert (tmp_path / "joined.csv").read_text().splitlines()[1].startswith('"\'=1+1","good"')


def test_parquet_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is too large to come with every client."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "results_store.export.parquet_export", raising=False)
    result = argosy("results", "any", "--format", "parquet")
    assert result.exit_code == 1
    assert "pip install 'argosy[parquet]'" in result.stderr


@pytest.mark.parametrize(
    ("text", "exit_code", "summary"), [("good", 0, "1 succeeded"), (FAILS, 1, "0 succeeded, 1 failed")]
)
def test_watching_ends_with_the_job_and_says_how_it_went(
    tmp_path: Path, stand_in: StandIn, text: str, exit_code: int, summary: str
) -> None:
    """A shell script can go on with `&&` only if every result is there and good."""
    (tmp_path / "a.txt").write_text(text)
    worker = threading.Thread(target=stand_in.work, args=(1,))
    worker.start()
    result = argosy("submit", tmp_path / "a.txt", "--task", "topic", "--watch")
    worker.join()
    assert result.exit_code == exit_code
    job = result.stdout.strip()
    assert JOB.match(job)
    assert f"{summary} of 1 results" in result.stderr
    why = f"argosy: topic of item 1 failed: input: is not to its liking; `argosy results {job}` has all results"
    assert (why in result.stderr) == (text == FAILS)


def test_parameters_and_priority_travel(tmp_path: Path, stand_in: StandIn) -> None:
    """For one task its parameters, for several by task: as in Python."""
    (tmp_path / "a.txt").write_text("good\n")
    submitted(tmp_path / "a.txt", "-t", "topic", "--params", '{"top_k": 3}', "-p", "interactive", "--deadline", "60")
    submitted(tmp_path / "a.txt", "-t", "topic", "-t", "spam", "--params", '{"spam": {"top_k": 2}}')
    urgent, bulk = stand_in.waiting()
    assert urgent.items[0].params == {"topic": {"top_k": 3}}
    assert urgent.deadline_at is not None
    assert bulk.items[0].params == {"spam": {"top_k": 2}}


def test_a_bad_row_stops_with_file_and_line(tmp_path: Path, stand_in: StandIn) -> None:
    """One line that is enough to mend the file; nothing was sent."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": 7}\n')
    result = argosy("submit", path, "--task", "topic")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"argosy: {path}:2: must be text, not int; make it a text, in Python with str()\n"
    assert stand_in.waiting() == []


def test_a_bad_row_is_left_out_if_so_wished(tmp_path: Path, stand_in: StandIn) -> None:
    """The rows left out are counted on standard error, and the id stands alone on standard output."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nnonsense\n{"text": ""}\n')
    result = argosy("submit", path, "--task", "topic", "--on-error", "skip")
    assert result.exit_code == 0
    assert JOB.match(result.stdout.strip())
    assert result.stderr.startswith(f"argosy: 2 rows left out; the first: {path}:2: is not JSON")
    assert len(stand_in.waiting()[0].items) == 1


def test_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    """A job of nothing would look like success."""
    (tmp_path / "a.jsonl").write_text("nonsense\n")
    result = argosy("submit", tmp_path / "a.jsonl", "--task", "topic", "--on-error", "skip")
    assert result.exit_code == 1
    assert "no row could be submitted" in result.stderr
    assert "no jobs yet" in argosy("status").stderr


@pytest.mark.parametrize("option", ["--errors", "--output"])
def test_a_source_is_not_written_over(tmp_path: Path, option: str) -> None:
    """Nor is what an earlier run wrote read as a source by a pattern."""
    rows = tmp_path / "rows.csv"
    rows.write_text("text\ngood\n")
    for source in (rows, f"{tmp_path}/*.csv"):
        refused = argosy("submit", source, "-t", "topic", option, rows)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"argosy: {option}: {rows} is one of the sources")
    assert rows.read_text() == "text\ngood\n"


def test_the_same_key_submits_once(tmp_path: Path, stand_in: StandIn) -> None:
    """A script that is run again after a failure needs no care."""
    (tmp_path / "a.txt").write_text("good\n")
    jobs = {submitted(tmp_path / "a.txt", "-t", "topic", "--idempotency-key", "nightly") for _ in range(2)}
    assert len(jobs) == 1
    assert len(stand_in.waiting()) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["submit", "none.csv", "-t", "topic"], 1, "argosy: none.csv: does not exist; check the path"),
        (["submit", "none.csv", "-t", "topik"], 1, "argosy: task: no task 'topik'; did you mean 'topic'?"),
        (["submit", "none.csv"], 2, "argosy: Missing option '-t' / '--task'; see `argosy submit --help`"),
        (["submit", "a", "-t", "topic", "--params", "{"], 2, "argosy: --params: not JSON: "),
        (["submit", "a", "-t", "topic", "-p", "now"], 2, "argosy: Invalid value for '-p' / '--priority'"),
        (["status", "nowhere"], 1, "argosy: no job 'nowhere'; `argosy status` lists the jobs"),
        (["results", "nowhere"], 1, "argosy: no job 'nowhere'; `argosy status` lists the jobs"),
        (["cancel", "nowhere"], 1, "argosy: no job 'nowhere'; `argosy status` lists the jobs"),
        (["status", "--limit", "0"], 2, "argosy: Invalid value for '--limit': 0 is not in the range 1<=x<=1000000000"),
        (["status", "--limit", "9" * 30], 2, "argosy: Invalid value for '--limit': 9999"),
        (["tenants", "set", "x", "--in-flight", "9" * 30], 2, "argosy: Invalid value for '--in-flight': 9999"),
        (["tenants", "set", "x", "--weight", "1e-308"], 2, "argosy: Invalid value for '--weight': 1e-308 is not in"),
        (["purge", "--older-than", "9999w"], 2, "argosy: Invalid value for '--older-than': '9999w' is over 100 years"),
        (["gateway", "--host", "a..b"], 1, "argosy: --host: a..b: no name of a host; give an address"),
        (["dead", "nowhere"], 1, "argosy: no job 'nowhere'; `argosy status` lists the jobs"),
        (
            ["tenants", "set", "acme", "--weight", "nan"],
            2,
            "argosy: Invalid value for '--weight': 'nan' is not a number",
        ),
        (
            ["what-if", "--set", "rows=1"],
            2,
            "argosy: Invalid value for --set: 'rows' cannot be changed; choose from batch",
        ),
        (
            ["what-if", "--set", "window=0"],
            2,
            "argosy: Invalid value for --set: 'window=0': 0 is not in the range x>=1",
        ),
        (
            ["what-if", "--set", "bulk_share=nan"],
            2,
            "argosy: Invalid value for --set: 'bulk_share=nan': 'nan' is not a",
        ),
        (["what-if", "--minutes", "-1"], 2, "argosy: Invalid value for '--minutes': -1.0 is not in the range x>0"),
        (
            ["up"],
            1,
            "argosy: ARGOSY_BROKER_URL: is set, so clients would not find this fleet, which has its own broker",
        ),
        (["gateway", "--port", "99999"], 2, "argosy: Invalid value for '--port': 99999 is not in the range"),
        (["gateway", "--rate", "nan"], 2, "argosy: Invalid value for '--rate': 'nan' is not a number"),
        (["status", "--search", "\udcff"], 1, "argosy: '\\udcff' is not valid Unicode; write it in UTF-8"),
        (["frobnicate"], 2, "argosy: No such command 'frobnicate'"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(arguments: list[str], exit_code: int, message: str) -> None:
    """Nobody should read a traceback to learn of a typing error."""
    result = argosy(*arguments)
    assert result.exit_code == exit_code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_broker_or_store_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address, without the password."""
    (tmp_path / "a.txt").write_text("good\n")
    monkeypatch.setenv("ARGOSY_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
    away = argosy("submit", tmp_path / "a.txt", "-t", "topic")
    assert away.exit_code == 1
    assert re.fullmatch(r"argosy: Redis at 127\.0\.0\.1:1: .*; check that it runs and can be reached\n", away.stderr)
    monkeypatch.setenv("ARGOSY_STORE_URL", f"sqlite:///{tmp_path}/none.db")
    assert "run `argosy migrate`" in argosy("status").stderr


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in the URL must not end in a traceback, nor in a file that is written over."""
    (tmp_path / "notes.txt").write_text("buy milk")
    monkeypatch.setenv("ARGOSY_STORE_URL", f"sqlite:///{tmp_path}/notes.txt")
    assert argosy("migrate").stderr.endswith("file is not a database; name another file, or move this one away\n")
    assert (tmp_path / "notes.txt").read_text() == "buy milk"


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A path that does not exist is the usual reason."""
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    result = argosy("results", job, "--output", tmp_path / "none" / "out.csv")
    assert result.exit_code == 1
    out = tmp_path / "none" / "out.csv"
    assert result.stderr == f"argosy: {out}: No such file or directory; check the path and its permissions\n"
    refused = argosy("submit", tmp_path / "a.txt", "-t", "topic", "--output", "/proc/sys/out.csv")  # not even root's
    assert "where this user may not write" in refused.stderr
    refused = argosy("submit", tmp_path / "a.txt", "-t", "topic", "--revisions")
    assert (refused.exit_code, "--revisions is for --output" in refused.stderr) == (2, True)


def test_jobs_are_listed_for_people_and_for_programs(tmp_path: Path) -> None:
    """Identifiers are never cut, also where there is no terminal to be wide enough."""
    assert "no jobs yet" in argosy("status").stderr
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic", "--name", "a rather long name for a job of one line")
    listed = argosy("status").stdout
    assert job in listed
    assert "a rather long name for a job of one line" in listed
    found = json.loads(argosy("status", "--json").stdout)
    assert (found["id"], found["state"]) == (job, "waiting")


def test_the_first_characters_of_an_id_are_enough(store: Store, stand_in: StandIn, tmp_path: Path) -> None:
    """As in git: if they name several jobs, the command lists them and does nothing."""
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    stand_in.work(1)
    for other in ("00000001a", "00000001b"):
        store.create_job(NewJob(id=other, priority=9))
    short = job[:6]
    assert f"job       {job}\n" in argosy("status", short).stdout
    assert json.loads(argosy("results", short).stdout)["job"] == job
    for command in ("cancel", "dead", "failures", "replay"):
        assert argosy(command, short).exit_code == 0
        assert "'00000' begins the ids of several jobs: 00000001b, 00000001a; " in argosy(command, "00000").stderr
    assert not any(store.job(other).cancelled_at for other in ("00000001a", "00000001b"))
    assert "no job '000'" in argosy("status", "000").stderr, "too short"
    assert "no job '0%'" in argosy("status", "0%").stderr


def test_jobs_are_searched_and_watched(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic", "--name", "nightly reviews")
    other = submitted(tmp_path / "a.txt", "-t", "topic", "--name", "of the day")
    found = argosy("status", "--search", "nightly").stdout
    assert job in found
    assert other not in found
    assert "no job has 'weekly' in its name" in argosy("status", "--search", "weekly").stderr
    stand_in.work(2)
    watched = argosy("status", job, "--watch")
    assert (watched.exit_code, "1 succeeded of 1 results" in watched.stderr) == (0, True)
    for options in (["--json"], []):
        assert "in a terminal" in argosy("status", "--watch", *options).stderr


def test_the_table_of_jobs_is_watched_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "producers.commands.main", "status", "--watch"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while job.encode() not in said:
            said += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    os.close(ours)
    assert b"Traceback" not in said


def test_a_job_is_cancelled(tmp_path: Path, stand_in: StandIn) -> None:
    """The remedy for having submitted the wrong file."""
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    assert argosy("cancel", job).stderr == f"job {job}: cancelled after 0 of 1 results\n"
    assert "state     cancelling" in argosy("status", job).stdout
    stand_in.work(1)
    assert "state     cancelled" in argosy("status", job).stdout
    assert argosy("cancel", job).stderr == f"job {job} was already finished\n"


def test_tasks_are_listed_with_their_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the fleet's own file as well."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[models.mine.tasks]\nmood = "text-classification"\n')
    monkeypatch.setenv("ARGOSY_FLEET", str(fleet))
    lines = {line.split()[0]: line for line in argosy("tasks").stdout.splitlines()}
    assert "top_k=1 truncation=false" in lines["sentiment"]
    assert "text-classification  mine " in re.sub(r"  +", "  ", lines["mood"])


@pytest.mark.parametrize(
    "command", ["submit", "status", "results", "cancel", "tasks", "failures", "dead", "replay", "purge"]
)
def test_every_help_is_there(command: str) -> None:
    """Each is a small manual."""
    result = argosy(command, "--help")
    assert result.exit_code == 0
    assert f"Usage: argosy {command}" in result.stdout


def test_help_loads_neither_the_database_nor_the_tables() -> None:
    """`--help` must answer at once."""
    heavy = "{'torch', 'transformers', 'celery', 'kombu', 'sqlalchemy', 'redis', 'rich'}"
    code = (
        "import atexit, sys; from producers.commands.main import main;"
        f"atexit.register(lambda: print('loaded:', {heavy} & set(sys.modules))); main(['submit', '--help'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("loaded: set()\n")


def test_commands_of_packages_that_are_not_installed_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain client has no workers; its own commands work all the same."""
    broken = EntryPoint(name="worker", value="not_there:COMMANDS", group=command_line.GROUP)
    monkeypatch.setattr(command_line, "entry_points", lambda group: [broken])
    result = argosy("up")
    assert result.exit_code == 2
    assert "pip install 'argosy[local]'" in result.stderr
    assert argosy("--help").exit_code == 0
    assert argosy("tasks").exit_code == 0


def test_commands_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is a list of click commands."""
    monkeypatch.setattr(command_line, "entry_points", lambda group: [_Added()])
    assert argosy("hail").stdout == "ahoy\n"
    assert "hail" in argosy("--help").stdout


class _Added:
    @staticmethod
    def load() -> list[click.Command]:
        return [click.Command("hail", callback=lambda: click.echo("ahoy"))]


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path, stand_in: StandIn) -> None:
    """`argosy results JOB | head` is what everybody types."""
    (tmp_path / "a.txt").write_text("a line of some length\n" * 3_000)
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    stand_in.work(len(stand_in.waiting()))
    for command, reader in ((f"results {job}", "head -n 1"), ("status", "true")):
        script = f"{sys.executable} -m producers.commands.main {command} | {reader}; exit ${{PIPESTATUS[0]}}"
        out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert out.stderr == ""
        if reader != "true":
            assert json.loads(out.stdout)["seq"] == 0


@pytest.mark.parametrize("command", ["status", "results {}"])
def test_any_text_is_written_in_any_locale(tmp_path: Path, stand_in: StandIn, command: str) -> None:
    """As under cron, or over an ssh that hands no locale on: UTF-8, whatever the locale can write."""
    (tmp_path / "a.csv").write_text("id,text\nя,good\n", encoding="utf-8")
    job = submitted(tmp_path / "a.csv", "-t", "topic", "--name", "日本")
    stand_in.work(1)
    words = [sys.executable, "-m", "producers.commands.main", *command.format(job).split()]
    out = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True)
    assert ("日本" if "status" in command else "я") in out.stdout.decode("utf-8")


def test_closed_streams_are_empty_ones(tmp_path: Path, stand_in: StandIn) -> None:
    """Daemons and schedulers start programs so."""
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    for words, code in ((f"results {job}", 0), ("submit - -t topic", 1)):
        script = f"{sys.executable} -m producers.commands.main {words} <&- >&- 2>{tmp_path}/said"
        assert subprocess.run(["bash", "-c", script], check=False).returncode == code
        assert "Traceback" not in (tmp_path / "said").read_text()


def test_ctrl_c_while_watching_says_that_the_job_goes_on(tmp_path: Path) -> None:
    """Stopping to look does not stop the work, and no traceback says otherwise."""
    (tmp_path / "a.txt").write_text("good\n")
    command = [
        sys.executable,
        "-m",
        "producers.commands.main",
        "submit",
        str(tmp_path / "a.txt"),
        "-t",
        "topic",
        "--watch",
    ]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unbuffered
    ) as process:
        assert process.stdout is not None
        job = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    # the signal may also come between the job's id and the watching; then there is nothing to add
    assert errors.strip() in ("", f"argosy: the job goes on; see `argosy status {job}`")


def announce(broker_url: str, **revisions: str) -> None:
    """Announce the only worker, which serves these revisions of models."""
    publisher = Publisher(broker_url)
    models = {name: presence.ModelState(revision=revision) for name, revision in revisions.items()}
    presence.tell(publisher, presence.NodeState(name="n1", device="cpu", models=models))
    publisher.close()


def test_work_that_no_running_worker_serves_is_said(
    tmp_path: Path, broker_url: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits, perhaps for ever: the status says so, and a watched job does while it makes no progress."""
    rows = tmp_path / "lines.txt"
    rows.write_text("good\n")
    job = submitted(rows, "--task", "topic")
    for status in (argosy("status"), argosy("status", job)):
        assert status.stderr.startswith("argosy: no worker is running; the items wait until one is started")
    announce(broker_url, vision="r1")
    told = (
        "argosy: no running worker serves text; the items wait until one does: name it in `models` of its fleet.toml\n"
    )
    assert argosy("status").stderr == argosy("status", job).stderr == told
    monkeypatch.setattr(submit_progress, "LOOK_EVERY_S", 0.0)
    watching = submit_progress._Watch(lambda _: None)
    for _ in range(3):
        watching(store.job(job))
    assert capsys.readouterr().err == told
    announce(broker_url, text="r1")
    assert argosy("status", job).stderr == ""


def test_answers_of_another_revision_than_the_served_one_are_said(
    tmp_path: Path, broker_url: str, store: Store, stand_in: StandIn
) -> None:
    """The same command after the model has changed: without a word, the old answers pass for new ones."""
    rows = tmp_path / "lines.txt"
    rows.write_text("good\n")
    submitted(rows, "--task", "topic")
    stand_in.work(1)
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(update(results).values(model="text", model_revision="r1"))
    again = "argosy: all of it was submitted before"
    for served, said in (("r1", ""), ("r2", "; its results are of text r1, and workers now serve r2")):
        announce(broker_url, text=served)
        assert argosy("submit", rows, "--task", "topic").stderr == f"{again}{said}; `--again` submits it anew\n"


def test_a_dry_run_checks_and_estimates_and_submits_nothing(tmp_path: Path, store: Store) -> None:
    """From the fleet's recent batches, behind the work that waits; without a batch, it says that nothing is known."""
    rows = tmp_path / "reviews.csv"
    rows.write_text("id,review\n" + "".join(f"{n},fine film {n}\n" for n in range(400)) + "400,\n")
    command = ("submit", rows, "-t", "topic", "-t", "sentiment", "--input-column", "review", "--dry-run")
    refused = argosy(*command)
    assert (refused.exit_code, "reviews.csv" in refused.stderr) == (1, True), "a bad row stops it, as a submission"
    unknown = argosy(*command, "--on-error", "skip").stdout
    assert unknown.splitlines()[:2] == [
        "401 rows, 1 of them bad; nothing was submitted", "text (topic, sentiment): no recent batches"
    ]  # fmt: skip

    ran = {"model": "text", "model_revision": "r", "device": "cpu", "queue_wait_s": 0.0, "started_at": store.now() - 5}
    sizes = {"items": 10, "rows": 10, "tokens": 70, "padded_tokens": 80, "forward_s": 1.0}
    batches = [Batch(id=f"b{worker}", worker=worker, **ran, **sizes) for worker in ("w1", "w2")]
    store.commit([], batches=batches)
    store.create_job(NewJob(id="ahead", priority=9))
    store.add_envelopes([new_envelope("e0", job="ahead", model="text", priority=9, items=100, results=100)])
    store.pauses.pause("task", "topic", "a test")
    told = argosy(*command, "--on-error", "skip", "--deadline", "10")
    assert told.exit_code == 0
    assert "text (topic, sentiment): about 20.0 s of the fleet's time, 2,800 tokens" in told.stdout
    assert "done in about 25.0 s, 5.0 s of it behind other work: " in told.stdout
    assert "the deadline of 10 s comes before that" in told.stderr
    assert "task 'topic' is paused (a test); rows would wait" in told.stderr
    assert [job.id for job in store.jobs()] == ["ahead"]
