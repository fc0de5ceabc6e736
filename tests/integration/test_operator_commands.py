"""`argosy dead`, `replay` and `purge`: what they print, and what they leave."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner, Result

from producers.commands.main import main
from results_store.records import ALONE_AFTER_DEATHS, ResultState
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result
from workers.fleet import running_fleet


@pytest.fixture
def store_url(sqlite_url: str) -> str:
    """The commands do nothing that depends on the database: one is enough."""
    return sqlite_url


@pytest.fixture(autouse=True)
def environment(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)


def argosy(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def given_up(store: Store) -> None:
    """Job `a` with a dead letter, job `b` with an ordinary failure, both finished an hour ago."""
    payload = b'{"items": [{"input": "secret"}]}'
    store.add_envelopes([new_envelope("a0", job="a", payload=payload)], jobs=[new_job("a")])
    store.add_envelopes([new_envelope("b0", job="b")], jobs=[new_job("b")])
    failed = {"state": ResultState.FAILED, "output": None}
    store.claim(["a0"], worker="w1", lease_s=0)
    an_hour_ago = time.time() - 3600
    store.commit([result(0, job="a", envelope="a0", **failed)], dead=["a0"], at=an_hour_ago)
    error = {"kind": "ModelError", "message": "broke"}
    store.commit([result(0, job="b", envelope="b0", error=error, **failed)], done=["b0"], at=an_hour_ago)


@pytest.mark.usefixtures("given_up")
def test_dead_letters_are_listed_without_their_inputs() -> None:
    """A terminal is seen by more people than a text was meant for; programs may ask for it."""
    listed = argosy("dead")
    assert listed.stdout == "a0  job a  1 attempts  1 failed result  its worker reported no error\n"
    assert "argosy replay --error TooManyAttempts" in listed.stderr
    whole = json.loads(argosy("dead", "a", "--json").stdout)
    assert whole["payload"] == {"items": [{"input": "secret"}]}
    assert whole["failures"][0]["error"]["kind"] == "TooManyAttempts"
    assert argosy("dead", "b").stdout == ""


@pytest.mark.usefixtures("given_up")
def test_a_replay_says_what_it_put_back(store: Store) -> None:
    """By error, by job, and in the end nothing is left to put back."""
    assert argosy("replay", "--error", "TooManyAttempts").stdout == "1 failed results of 1 envelopes queued again\n"
    assert argosy("replay", "b").stdout == "1 failed results of 1 envelopes queued again\n"
    assert argosy("replay", "--all").stdout == "0 failed results of 0 envelopes queued again\n"
    assert store.depth()[0].envelopes == 2


def test_doctor_names_envelopes_under_which_workers_die(
    store: Store, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else says so while the workers are started again and again."""
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setattr(running_fleet, "SECOND_LOOK_S", 0.01)
    store.add_envelopes([new_envelope("a0", job="a")], jobs=[new_job("a")])
    for n in range(ALONE_AFTER_DEATHS):
        assert "run alone" not in argosy("doctor").output
        store.claim(["a0"], worker=f"w{n}", lease_s=-1.0)
    store.take_overdue(overdue_s=1e9)

    examined = argosy("doctor").output
    assert "1 run alone, for instance one of job a: workers died under them without an error" in examined
    assert "an item at fault fails as WorkerLost" in examined


def test_a_replay_of_everything_must_be_meant() -> None:
    """A job's id forgotten is not a wish for all of them; one misspelt is not nothing to do."""
    forgotten = argosy("replay")
    assert forgotten.exit_code == 2
    assert "name a job, an error with --error, or --all" in forgotten.stderr
    misspelt = argosy("replay", "nope")
    assert misspelt.exit_code == 1
    assert "no job 'nope'" in misspelt.stderr


@pytest.mark.usefixtures("given_up")
def test_a_purge_removes_what_is_older(store: Store) -> None:
    """By age; a duration without its unit is refused, since nobody can know what was meant."""
    assert argosy("purge", "--older-than", "2h").stdout.startswith("removed 0 jobs")
    assert argosy("purge", "--older-than", "30m", "--inputs").stdout.startswith("removed 0 jobs, 0 results, 2 inputs")
    assert argosy("purge", "--older-than", "30m").stdout.startswith("removed 2 jobs, 2 results")
    assert store.jobs() == []
    vacuumed = argosy("purge", "--older-than", "30m", "--vacuum").stdout
    assert re.fullmatch(r"removed 0 jobs.*\nthe database's file is [0-9,]+ bytes smaller\n", vacuumed)
    assert "write a number and a unit" in argosy("purge", "--older-than", "30").stderr


@pytest.mark.usefixtures("given_up")
def test_a_purge_asks_in_a_terminal(store: Store) -> None:
    """It cannot be undone; a script is not asked, nor is whoever says --yes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "producers.commands.main", "purge", "--older-than", "30m"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 65536)
        os.write(ours, b"n\n")
        assert process.wait() == 130
    os.close(ours)
    assert b"Delete all inputs and results of 2 finished jobs?" in said
    assert len(store.jobs()) == 2


def test_tenants_are_set_listed_and_reset(store: Store) -> None:
    """What is not named stays as it was; 0 lifts a limit; a tenant that is removed is like a new one, in its old
    lane.
    """
    assert argosy("tenants", "set", "acme", "--weight", "3", "--rate", "10").exit_code == 0
    assert argosy("tenants", "set", "acme", "--rate", "0", "--in-flight", "1000").exit_code == 0
    rows = [json.loads(line) for line in argosy("tenants", "list", "--json").stdout.splitlines()]
    unlimited = {"max_items_per_s": None, "max_in_flight": None, "in_flight": 0}
    assert rows == [
        {"name": "", "lane": 0, "weight": 1.0, **unlimited},
        {"name": "acme", "lane": 1, "weight": 3.0, **unlimited, "max_in_flight": 1000},
    ]
    assert "acme" in argosy("tenants", "list").stdout
    assert argosy("tenants", "remove", "acme").exit_code == 0
    assert store.tenants.enrol("acme").max_in_flight is None
    assert "'acne'; known tenants: '', 'acme'" in argosy("tenants", "remove", "acne").stderr
    assert "is not a valid tenant name" in argosy("tenants", "set", "a b").stderr


@pytest.mark.usefixtures("given_up")
def test_failures_are_counted_by_task_and_error(store: Store) -> None:
    """Which items failed, and why: not only those of envelopes that were given up."""
    error = {"kind": "ModelError", "message": "broke\ntwice"}
    more = [
        result(seq, job="c", task="price", envelope="c0", state=ResultState.FAILED, output=None, error=error)
        for seq in range(3)
    ]
    store.add_envelopes([new_envelope("c0", job="c", items=3, results=3)], jobs=[new_job("c")])
    store.commit(more, done=["c0"])
    listed = argosy("failures")
    lines = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
    assert [(count, kind) for count, _, kind, _ in lines] == [
        ("3", "ModelError"),
        ("1", "ModelError"),
        ("1", "TooManyAttempts"),
    ]
    assert lines[0][1:] == ["price", "ModelError", "broke twice"]
    assert "`argosy replay --error ModelError`" in listed.stderr
    of_one = argosy("failures", "c")
    assert of_one.stdout.split() == ["3", "price", "ModelError", "broke", "twice"]
    assert "`argosy replay c --error ModelError`" in of_one.stderr
    assert json.loads(argosy("failures", "c", "--json").stdout) == {
        "task": "price",
        "kind": "ModelError",
        "count": 3,
        "message": "broke\ntwice",
    }
    assert argosy("replay", "c", "--error", "ModelError").stdout == "3 failed results of 1 envelopes queued again\n"
    assert argosy("failures", "c").stderr == "argosy: no failed results\n"
    assert argosy("failures", "nothing").exit_code == 1


def test_failures_are_counted_on_both_databases(postgresql_url: str) -> None:
    other = Store(postgresql_url)
    other.migrate()
    with other:
        other.add_envelopes([new_envelope("c0", job="c")], jobs=[new_job("c")])
        error = {"kind": "ModelError", "message": "broke"}
        other.commit([result(0, job="c", envelope="c0", state=ResultState.FAILED, output=None, error=error)])
        (found,) = other.count_failures(job="c")
        assert (found.kind, found.count, found.message) == ("ModelError", 1, "broke")
        assert other.unfinished_models("c") == ["text"]


def test_a_pause_is_set_listed_and_lifted(store: Store) -> None:
    """By the names that the fleet has: a misspelt pause would hold nothing, and say nothing."""
    store.create_job(new_job("a", tenant="acme"))
    store.tenants.enrol("acme")
    store.add_envelopes([new_envelope("a0", job="a", model="mine")])

    wrong = argosy("pause", "task", "sentimant")
    assert (wrong.exit_code, "the fleet has no task 'sentimant'; did you mean 'sentiment'?" in wrong.stderr) == (
        1,
        True,
    )
    for kind, name in (("task", "sentiment"), ("model", "mine"), ("tenant", "acme"), ("tenant", "")):
        assert argosy("pause", kind, name, "--reason", "a test").exit_code == 0
    store.claim(["a0"], worker="w", lease_s=60)

    assert "is already paused" in argosy("pause", "task", "sentiment").stderr.replace("was", "is")
    listed = argosy("pause").stdout
    assert re.search(r"^model 'mine'  since \S+  1 envelopes wait  a test$", listed, re.MULTILINE)
    assert {json.loads(line)["name"] for line in argosy("pause", "--json").stdout.splitlines()} == {
        "sentiment", "mine", "acme", ""
    }  # fmt: skip
    assert "model 'mine' is paused (a test); `argosy resume model mine` ends it" in argosy("status", "a").stderr
    [finding] = [one for one in running_fleet.paused(store) if "mine" in one.found]
    assert (finding.ok, "1 envelopes wait" in finding.found) == (True, True)
    for kind, name in (("task", "sentiment"), ("model", "mine"), ("tenant", "acme"), ("tenant", "")):
        assert argosy("resume", kind, name).exit_code == 0
    assert argosy("resume", "model", "mine").exit_code == 2
    assert "nothing is paused" in argosy("pause").stderr
