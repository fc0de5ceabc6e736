"""A pipeline by the command: bad rows, interruptions, rows and results joined, on real files and a real store."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from producers.client.sending import intake
from producers.commands.main import main
from producers.commands.output_file import OUTPUT
from producers.joining import joined_files
from producers.wire import packing
from producers.wire.errors import ConfigurationError
from producers.wire.messages import Envelope
from results_store.sql.database import Weight
from results_store.sql.schema import jobs
from results_store.store import Store
from tests.integration.stand_in import FAILS, StandIn

Argosy = Callable[..., Result]


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


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNK_ITEMS", 4)
    monkeypatch.setattr(packing, "ENVELOPE_ITEMS", 2)


def argosy(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def submitted(*arguments: str | Path) -> str:
    result = argosy("submit", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


@contextlib.contextmanager
def working(stand_in: StandIn, items: int) -> Iterator[None]:
    """A worker for so many items, meanwhile."""
    worker = threading.Thread(target=stand_in.work_off, args=(items,))
    worker.start()
    yield
    worker.join()


def errors_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- joined ---


def test_results_come_back_beside_their_rows(tmp_path: Path, stand_in: StandIn) -> None:
    """Parquet to Parquet: the columns as they were, one for each task, and what went wrong."""
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "review": ["good", "", FAILS, "bad"],
            "stars": pa.array([5, None, 3, 1], pa.int8()),
            "at": pa.array([1_700_000_000_123_456_789] * 4, pa.timestamp("ns")),
        }
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    told = ("--input-column", "review", "--on-error", "skip", "--errors", tmp_path / "errors.jsonl", "--output", out)
    with working(stand_in, 3):
        result = argosy("submit", tmp_path / "in.parquet", "-t", "topic", "-t", "embedding", *told)
    assert result.exit_code == 1, "one of them failed"
    assert f"4 rows in {out}" in result.stderr
    joined = pq.read_table(out)
    assert joined.select(rows.column_names).equals(rows)
    found = joined.drop_columns(["at"]).to_pylist()  # nanoseconds are pandas' alone
    assert [row["topic"] for row in found] == [
        '[{"label":"topic of good","score":0.5}]',
        None,
        None,
        '[{"label":"topic of bad","score":0.5}]',
    ]
    assert [row["embedding"] for row in found] == [[0.5, -1.25], None, None, [0.5, -1.25]]
    assert [row["error"] for row in found] == [
        None,
        f"{tmp_path}/in.parquet:2: is empty; leave the item out, or give it a text",
        "topic: InvalidInput: input: is not to its liking; embedding: InvalidInput: input: is not to its liking",
        None,
    ]
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_rows_and_results_go_to_a_url(tmp_path: Path, stand_in: StandIn) -> None:
    """An object store has a file whole or not at all; one that refuses it costs nothing that was computed."""
    (tmp_path / "in.csv").write_text("text\ngood\nbad\n")
    fs = fsspec.filesystem("memory")
    with working(stand_in, 2):
        result = argosy("submit", tmp_path / "in.csv", "-t", "topic", "--output", "memory://out/rated.csv")
    assert (result.exit_code, "2 rows in memory://out/rated.csv" in result.stderr) == (0, True), result.output
    assert str(OUTPUT.convert("https://host/rated.csv?token=secret", None, None)) == "https://host/rated.csv"
    job = result.stdout.strip()
    assert argosy("results", job, "-o", "memory://out/results.parquet").exit_code == 0
    with fsspec.open("memory://out/results.parquet", "rb") as file:
        assert pq.read_table(file).num_rows == 2
    assert argosy("results", job, "-o", f"file://{tmp_path}/out.jsonl").exit_code == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    for url, problem in (
        ("nowhere://a/b.csv", "cannot be opened"),
        ("memory://out", "is a folder"),
        ("memory://", "is a folder"),
    ):
        refused = argosy("results", job, "-o", url)
        assert (refused.exit_code, problem in refused.output) == (1, True), refused.output
    same = argosy("submit", "memory://out/rated.csv", "-t", "topic", "--output", "memory://out/rated.csv")
    assert "would be overwritten" in same.output
    matched = argosy("submit", "memory://out/*.csv", "-t", "topic", "--output", "memory://out/new.csv")
    assert "memory://out/new.csv is one of the sources, or their pattern matches it" in matched.output
    fs.rm("/out", recursive=True)


def test_a_file_that_its_store_refuses_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows took hours: the message says where they are."""
    output = OUTPUT.convert("memory://out/rated.csv", None, None)
    monkeypatch.setattr(output, "path", tmp_path / "rated.csv")
    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", Mock(side_effect=PermissionError("no rights")))
    with (
        pytest.raises(ConfigurationError, match=r"memory://out/rated\.csv: cannot be written: no rights"),
        output.placed() as path,
    ):
        path.write_text("a")
    [left] = tmp_path.glob("argosy-*-rated.csv")
    assert left.read_text() == "a"


def test_rows_without_a_schema_join_as_well(tmp_path: Path, stand_in: StandIn) -> None:
    """JSON Lines whose rows differ; columns called like what is added keep their names."""
    (tmp_path / "in.jsonl").write_text(
        '{"text": "good", "n": 1, "tags": ["x"]}\n{"text": "bad", "n": 2.5, "topic": "none"}\nnonsense\n'
    )
    for suffix in ("jsonl", "csv", "parquet"):
        told = ("--on-error", "skip", "--again", "--output", tmp_path / f"out.{suffix}")
        with working(stand_in, 2):
            assert argosy("submit", tmp_path / "in.jsonl", "-t", "topic", *told).exit_code == 0
    good, bad, nonsense = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert good == {"text": "good", "n": 1, "tags": ["x"], "topic_": labels("good"), "error": None}
    assert bad == {"text": "bad", "n": 2.5, "topic": "none", "topic_": labels("bad"), "error": None}
    assert nonsense["topic_"] is None
    assert "in.jsonl:3: is not JSON" in nonsense["error"]
    with (tmp_path / "out.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first == {
        "text": "good",
        "n": "1",
        "tags": '["x"]',
        "topic": "",
        "topic_": json.dumps(labels("good"), separators=(",", ":")),
        "error": "",
    }
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("n").type == pa.float64()
    assert table.column("tags").to_pylist() == ['["x"]', None, None]


def labels(text: str) -> list[dict[str, Any]]:
    return [{"label": f"topic of {text}", "score": 0.5}]


def test_any_column_survives_the_join(tmp_path: Path, stand_in: StandIn) -> None:
    """Whatever a warehouse exports: Parquet keeps its types, CSV and JSON Lines have a word for each value."""
    rows = pa.table(
        {
            "text": pa.array(["good", "bad"]).dictionary_encode(),
            "price": [Decimal("1.20"), None],
            "seen": pa.array([1, None], pa.timestamp("us", "UTC")),
            "raw": [b"\x00", b""],
            "parts": [[{"a": 1}], None],
            "counts": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        }
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    for suffix in ("parquet", "csv", "jsonl"):
        with working(stand_in, 2):
            argosy("submit", tmp_path / "in.parquet", "-t", "topic", "--again", "-o", tmp_path / f"out.{suffix}")
    assert pq.read_table(tmp_path / "out.parquet").select(rows.column_names).equals(rows)
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["price"], first["raw"], first["parts"], first["counts"]) == ("1.20", "AA==", [{"a": 1}], [["k", 1]])
    assert (second["price"], second["seen"], second["parts"]) == (None, None, None)
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["price"], first["raw"], first["parts"]) == ("1.20", "AA==", '[{"a":1}]')
    assert (second["price"], second["seen"], second["parts"]) == ("", "", "")


def test_what_was_piped_in_is_joined_too(tmp_path: Path, stand_in: StandIn) -> None:
    """From a copy, since a pipe runs once."""
    told = ("-f", "csv", "-t", "topic", "--output", tmp_path / "out.jsonl")
    with working(stand_in, 2):
        result = argosy("submit", "-", *told, stdin=b"id,text\nx,good\ny,bad\n")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["topic"][0]["label"]) for row in rows] == [("x", "topic of good"), ("y", "topic of bad")]


def test_a_source_that_changed_meanwhile_is_not_joined(tmp_path: Path, stand_in: StandIn) -> None:
    """Results beside the wrong rows would be worse than none; they are safe in the store.

    The key itself knows the rows, but not those of an older version.
    """
    path = tmp_path / "in.csv"
    path.write_text("id,text\nx,good\ny,bad\n")
    key = ("--idempotency-key", "nightly")
    submitted(path, "-t", "topic", *key)
    stand_in.work(1)
    with stand_in._store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(update(jobs).values(request=None, fingerprint=None))
    path.write_text("id,text\nz,new\nx,good\ny,bad\n")
    with working(stand_in, 1):
        result = argosy("submit", path, "-t", "topic", *key, "--output", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert (
        "in.csv:2: has the key 'z', but the result in this place has 'x'; the file has changed since" in result.stderr
    )
    assert "the results are safe: `argosy results " in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_source_without_ids_that_changed_meanwhile_is_not_joined(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line in front would move each result to another row."""
    path = tmp_path / "a.txt"
    path.write_text("good\nbad\n")

    commit = stand_in.commit

    def changed(envelope: Envelope) -> None:
        path.write_text("new\ngood\nbad\n")
        commit(envelope)

    monkeypatch.setattr(stand_in, "commit", changed)
    with working(stand_in, 2):
        result = argosy("submit", path, "-t", "topic", "--output", tmp_path / "out.csv")
    job = result.stdout.strip()
    assert result.exit_code == 1
    assert "a.txt: differs in a name, a size or a time; the file has changed since its submission" in result.stderr
    assert f"the results are safe: `argosy results {job}`" in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_results_are_safe_whatever_keeps_the_rows_from_their_file(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("good\n")
    monkeypatch.setattr(joined_files, "write_lines", Mock(side_effect=OSError(28, "No space left on device", "out")))
    with working(stand_in, 1):
        result = argosy("submit", tmp_path / "a.txt", "-t", "topic", "--output", tmp_path / "out.jsonl")
    job = result.stdout.strip()
    assert (
        f"No space left on device; check the path and its permissions; the results are safe: `argosy results {job}`"
        in result.stderr
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.xlsx", "output: is called out.xlsx; give it one of the suffixes .parquet, .csv, .jsonl"),
        ("none/out.csv", "which is not a folder; make it, or check the path"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_sent(
    tmp_path: Path, stand_in: StandIn, output: str, message: str
) -> None:
    """Not after the night that it took."""
    (tmp_path / "a.txt").write_text("good\n")
    result = argosy("submit", tmp_path / "a.txt", "-t", "topic", "--output", tmp_path / output)
    assert result.exit_code == 1
    assert message in result.stderr
    assert stand_in.waiting() == []


# --- bad rows ---


def test_every_kind_of_bad_row_is_told_with_place_and_remedy(tmp_path: Path, stand_in: StandIn) -> None:
    """In a file of their own; the good ones go their way."""
    path = tmp_path / "in.jsonl"
    rows = [
        b'{"id": "a", "text": "good"}',
        b'{"id": "b", "said": "x", "by": "y"}',
        b'{"id": "c", "text": ""}',
        b'{"id": "a", "text": "twice"}',
        b"{nonsense",
        b'{"id": "d", "text": "na\xefve"}',
        b'{"id": "e", "text": 7}',
        b'{"id": "f", "text": "last"}',
    ]
    path.write_bytes(b"\n".join(rows))
    told = ("--id-column", "id", "--on-error", "skip", "--errors", tmp_path / "errors.jsonl")
    result = argosy("submit", path, "-t", "topic", *told)
    assert result.exit_code == 0
    assert f"6 rows left out; the first: {path}:2: " in result.stderr
    assert f"all of them: {tmp_path}/errors.jsonl" in result.stderr
    errors = errors_in(tmp_path / "errors.jsonl")
    assert [(error["row"], error["where"]) for error in errors] == [(n, f"{path}:{n}") for n in range(2, 8)]
    problems = ["which column", "is empty", "has the id 'a'", "is not JSON", "is not UTF-8", "must be text, not int"]
    assert [problem in error["problem"] for problem, error in zip(problems, errors, strict=True)] == [True] * 6
    assert all(error["remedy"] for error in errors)
    assert [item.key for item in stand_in.waiting()[0].items] == ["a", "f"]


def test_a_vanished_image_costs_only_itself(tmp_path: Path) -> None:
    """The list was made last week, the folder tidied since."""
    (tmp_path / "cat.png").write_bytes(b"cat")
    (tmp_path / "in.csv").write_text("id,image\nx,cat.png\ny,gone.png\n")
    told = ("-t", "image-classification", "--on-error", "skip", "--errors", tmp_path / "errors.jsonl")
    submitted(tmp_path / "in.csv", *told)
    (error,) = errors_in(tmp_path / "errors.jsonl")
    assert (error["row"], error["id"]) == (2, None)
    assert error["problem"].endswith("gone.png cannot be read: No such file or directory")


@pytest.mark.usefixtures("small_chunks")
def test_a_bad_row_that_stops_says_how_to_go_on(tmp_path: Path, stand_in: StandIn) -> None:
    """Mending the file makes it another file; its key makes it the same submission."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'"text {n}"\n' for n in range(6)) + "nonsense\n" + '"text 7"\n')
    result = argosy("submit", path, "-t", "topic", "--errors", tmp_path / "errors.jsonl")
    assert result.exit_code == 1
    assert f"{path}:7: is not JSON" in result.stderr
    assert [error["row"] for error in errors_in(tmp_path / "errors.jsonl")] == [7]
    remedy = result.stderr.partition("add `")[2].partition("`")[0]
    path.write_text("".join(f'"text {n}"\n' for n in range(8)))
    again = argosy("submit", path, "-t", "topic", *remedy.split())
    assert "resumed after the 4 items that were submitted before" in again.stderr
    assert [item.seq for envelope in stand_in.waiting() for item in envelope.items] == list(range(8))


# --- again ---


def test_the_same_command_submits_once(tmp_path: Path, stand_in: StandIn) -> None:
    """Until the file, or what is asked of it, is another; or it is asked for again."""
    path = tmp_path / "a.txt"
    path.write_text("good\n")
    first = submitted(path, "-t", "topic")
    result = argosy("submit", path, "-t", "topic")
    assert result.stdout.strip() == first
    assert "all of it was submitted before; `--again` submits it anew" in result.stderr
    others = [submitted(path, "-t", "spam"), submitted(path, "-t", "topic", "--again")]
    path.write_text("better\n")
    others.append(submitted(path, "-t", "topic"))
    assert len({first, *others}) == 4
    assert len(stand_in.waiting()) == 4


def test_a_cancelled_submission_is_not_gone_on_with(tmp_path: Path) -> None:
    """What was added to it would never be computed."""
    (tmp_path / "a.txt").write_text("good\n")
    job = submitted(tmp_path / "a.txt", "-t", "topic")
    argosy("cancel", job)
    result = argosy("submit", tmp_path / "a.txt", "-t", "topic")
    assert result.exit_code == 1
    assert (
        f"belongs to the job {job}, which was cancelled; choose another key (`argosy submit --again`)" in result.stderr
    )
    assert "`--output FILE` writes the rows with the results that it has" in result.stderr
    assert submitted(tmp_path / "a.txt", "-t", "topic", "--again") != job


@pytest.mark.usefixtures("small_chunks")
def test_a_submission_that_was_cancelled_half_way_is_joined(tmp_path: Path, stand_in: StandIn) -> None:
    """By the same command, with the columns of the source."""
    rows, out = tmp_path / "in.csv", tmp_path / "out.csv"
    rows.write_text("id,text,mine\n" + "".join(f"{letter},text {letter},my {letter}\n" for letter in "abcd"))
    job = submitted(rows, "-t", "topic")
    stand_in.work(1)
    argosy("cancel", job)
    with working(stand_in, 2):
        result = argosy("submit", rows, "-t", "topic", "--output", out)
    assert (result.exit_code, result.stdout) == (1, f"{job}\n")
    assert "the job was cancelled; the rows are written with the results that it has" in result.stderr
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["mine"], bool(row["topic"]), row["error"]) for row in found] == [
        ("my a", True, ""),
        ("my b", True, ""),
        ("my c", False, "topic: cancelled"),
        ("my d", False, "topic: cancelled"),
    ]
    other = argosy("submit", rows, "-t", "spam", "--idempotency-key", "mine")
    argosy("cancel", other.stdout.strip())
    refused = argosy("submit", rows, "-t", "topic", "--idempotency-key", "mine", "--output", out)
    assert "its tasks are spam, here they are topic" in refused.stderr, "another submission's rows are not these"


def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    """Items, items a second, and when it will be over."""
    (tmp_path / "a.txt").write_text("a text\n" * 9_000)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "producers.commands.main", "submit", str(tmp_path / "a.txt"), "-t", "topic"]
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=terminal) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", 0) as screen:  # an error is its end, on Linux
            while some := screen.read(4096):
                shown += some
    assert process.returncode == 0, shown
    assert re.search(rb"submitting 9,000 items, [\d,]+/s .*0:00:00", shown), shown
