"""What operators change is written down, in the change's own transaction: who, when, what, from where."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from producers.commands.main import main
from producers.gateway.keys import new_key
from results_store.records import ResultState, Tenant
from results_store.sql.auditing.audit_log import Actor, AuditEntry
from results_store.sql.database import Weight
from results_store.sql.waiting.schedules import Planned, Schedule
from results_store.store import Store
from tests.integration.rows import result, submit

ANN = Actor(name="ann", source="http", tenant="ours", key="k1", address="192.0.2.7")


def failed_job(store: Store) -> None:
    submit(store)
    store.commit([result(0, state=ResultState.FAILED, output=None, error={"kind": "ModelError", "message": "secret"})])
    store.commit([result(1)], done=["e0"])


def test_every_change_is_written_down_once(store: Store) -> None:
    """Nothing that changed nothing is; who, the subject and the details are, by the store's clock."""
    failed_job(store)
    _, key = new_key("laptop", "ours", created_at=0)
    nightly = Schedule(name="nightly", submission="{}", next_at=None)
    changes: list[Callable[[], object]] = [
        lambda: store.pauses.pause("model", "text", "bad weights", by=ANN),
        lambda: store.pauses.resume("model", "text", by=ANN),
        lambda: store.keys.add(key, by=ANN),
        lambda: store.keys.remove("laptop", by=ANN),
        lambda: store.dead_letters.replay(job="job", by=ANN),
        lambda: store.prioritize_job("job", 0, by=ANN),
        lambda: store.cancel_job("job", by=ANN),
        lambda: store.schedules.add(nightly, by=ANN),
        lambda: store.schedules.pause("nightly", by=ANN),
        lambda: store.schedules.resume("nightly", lambda *_: Planned(None, None), by=ANN),
        lambda: store.schedules.remove("nightly", by=ANN),
    ]
    before = store.now()
    for change in changes:
        change()
        change()
    store.tenants.configure(Tenant(name="acme", lane=0, weight=3.0), by=ANN)
    store.declarations.declare("text", {"revision": "2"}, by=ANN)
    store.retention.purge(finished_before=5.0, by=ANN)
    store.retention.purge()  # a worker's
    store.cancel_job("job")

    found = store.audit.newest()
    assert [(entry.action, entry.subject, entry.detail) for entry in reversed(found)] == [
        ("pause", "model:text", {"reason": "bad weights"}),
        ("resume", "model:text", {}),
        ("keys add", "key:laptop", {"role": "member", "tenant": "ours"}),
        ("keys remove", "key:laptop", {}),
        ("replay", "job:job", {}),
        ("priority", "job:job", {"priority": 0}),
        ("cancel", "job:job", {}),
        ("schedule add", "schedule:nightly", {}),
        ("schedule pause", "schedule:nightly", {}),
        ("schedule resume", "schedule:nightly", {}),
        ("schedule remove", "schedule:nightly", {}),
        ("tenants set", "tenant:acme", {"weight": 3.0}),
        ("models reload", "model:text", {"generation": 1}),
        ("purge", "jobs", {"finished_before": 5.0}),
    ]
    assert {(one.name, one.source, one.tenant, one.key, one.address) for one in found} == {
        ("ann", "http", "ours", "k1", "192.0.2.7")
    }
    assert all(before <= entry.at <= store.now() for entry in found)


def test_a_cancelled_item_is_written_down_with_its_number(store: Store) -> None:
    """Once, in the transaction of its rows; not if all its results were there."""
    submit(store)
    rows = [result(1, state=ResultState.CANCELLED, output=None)]
    assert [store.cancel_item(rows, by=ANN) for _ in range(2)] == [1, 0]
    (entry,) = store.audit.newest()
    assert (entry.name, entry.action, entry.subject, entry.detail) == ("ann", "cancel", "job:job", {"item": 1})
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(text("DROP TABLE audit_log"))
    with pytest.raises(Exception, match="audit_log"):
        store.cancel_item([result(0, state=ResultState.CANCELLED, output=None)], by=ANN)
    assert [row.seq for row in store.results("job")] == [1]


def test_a_change_whose_entry_cannot_be_written_is_not_made(store: Store) -> None:
    """They share a transaction: an operator who leaves no trace has changed nothing."""
    with store._database.write(Weight.ACCEPTED) as connection:
        connection.execute(text("DROP TABLE audit_log"))
    with pytest.raises(Exception, match="audit_log"):
        store.pauses.pause("model", "text", by=ANN)
    assert store.pauses.every() == []


def test_entries_come_by_pages_and_go_after_their_time(store: Store) -> None:
    """Newest first; a text finds its action, subject, tenant or name; what any of them holds is text."""
    for number in range(5):
        store.pauses.pause("model", f"{number}%", by=ANN)
    store.pauses.pause("task", "look", "x" * 900, by=Actor(name="bob\x00\x1b", source="command"))
    first = store.audit.newest(limit=2)
    rest = store.audit.newest(limit=9, before=(first[-1].at, first[-1].id))
    assert [entry.subject for entry in (*first, *rest)] == ["task:look", *(f"model:{n}%" for n in reversed(range(5)))]
    assert [len(store.audit.newest(text=wanted)) for wanted in ("PAUSE", "3%", "ours", "bob", "%3")] == [6, 1, 5, 1, 0]
    assert len(first[0].detail["reason"]) == 500
    assert store.audit.newest(since=store.now() + 60) == []
    assert store.retention.purge_audit(older_than_s=3600) == 0
    assert store.retention.purge_audit(older_than_s=-1) == 6
    assert store.audit.newest() == []


def test_commands_write_down_the_machines_user(
    store: Store, store_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `argosy audit` lists it."""
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setenv("LOGNAME", "ann\x1b[2J")
    failed_job(store)
    for line in (
        "gateway keys add laptop --tenant ours",
        "gateway keys remove laptop",
        "tenants set acme --weight 2",
        "tenants remove acme",
        "pause task sentiment --reason wrong",
        "resume task sentiment",
        "replay job",
        "cancel job",
        "purge --older-than 30d --inputs --yes",
    ):
        done = CliRunner().invoke(main, line.split())
        assert done.exit_code == 0, (line, done.output)

    listed = CliRunner().invoke(main, ["audit"]).stdout.splitlines()
    actions = ["keys add", "keys remove", "tenants set", "tenants set", "pause", "resume", "replay", "cancel", "purge"]
    assert [line.split("  ")[1] for line in reversed(listed)] == actions
    assert "task:sentiment  by ann\\x1b[2J (command from " in listed[4]
    assert listed[4].endswith("reason=wrong")
    (entry,) = CliRunner().invoke(main, ["audit", "laptop", "--json", "--limit", "1"]).stdout.splitlines()
    assert AuditEntry(**json.loads(entry)).action == "keys remove"
    assert CliRunner().invoke(main, ["audit", "nobody"]).stderr == "argosy: no such entries\n"
