"""Bringing a database up to date, and refusing one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from producers.wire.messages import MSGPACK, VERSION, Envelope, Item, Priority, decode, decode_bytes
from producers.wire.packing import outbox_row
from results_store.errors import SchemaMismatch, StoreError
from results_store.gateway.gateway_files import StoredFile
from results_store.migrations import run
from results_store.migrations.run import configuration, downgrade, upgrade
from results_store.records import ResultState, Transaction
from results_store.sql.chunks.packed_rows import packed
from results_store.sql.columns import pack_vector
from results_store.sql.database import Database, Weight
from results_store.sql.schema import CHUNKS, COMPATIBLE, REVISION, VERSION_TABLE, metadata
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration import batches_before
from tests.integration.rows import batch, new_envelope, new_job, result, submit


def database(url: str) -> Database:
    return Database(url, timeout_s=30)


def test_the_migrations_build_exactly_the_tables_that_the_code_uses(store: Store, store_url: str) -> None:
    """Two descriptions of one schema drift apart unless something holds them together."""
    found = database(store_url)
    found.open()
    with found.read() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        differences: Any = compare_metadata(context, metadata)
    found.close()

    assert differences == []


def test_the_code_reads_the_newest_revision() -> None:
    """A revision added without moving REVISION would leave every `open` refusing its own database."""
    assert ScriptDirectory.from_config(configuration()).get_current_head() == REVISION


def test_migrating_twice_changes_nothing(store: Store) -> None:
    """`argosy up` migrates at every start; the data stays."""
    submit(store)
    store.commit([result(0)], batches=[batch("b0")])

    store.migrate()

    assert len(store.results("job")) == 1
    assert store.flight.recent() == [batch("b0")]


def test_down_and_up_again_with_data_in_it(store_url: str) -> None:
    """The way back works on a database in use, and leaves nothing in the way of coming forward again."""
    store = Store(store_url)
    store.migrate()
    with store:
        submit(store)
        vector = pack_vector([0.5])
        store.commit([result(0, vector=vector)], done=["e0"], batches=[batch("b0")])

    found = database(store_url)
    downgrade(found, "base")
    with found.read() as connection:
        assert sorted(inspect(connection).get_table_names()) == ["alembic_version", "argosy_revision"]
    upgrade(found)
    found.close()

    with store:
        assert store.jobs() == []
        submit(store)


def at_first_revision(found: Database) -> None:
    """A database as version 0.1.0 left it in the middle of its work."""
    upgrade(found, "0001")
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text("INSERT INTO jobs (id, priority, created_at, total) VALUES ('job', 9, 1, 2)"))
        columns = "id, job, model, priority, items, results, created_at, accepted_at, state, attempts"
        for number, state in enumerate(("accepted", "published", "done")):
            values = f"'e{number}', 'job', 'text', 9, 1, 1, 1, 1, '{state}', {number}"
            connection.execute(text(f"INSERT INTO envelopes ({columns}) VALUES ({values})"))
            connection.execute(text(f"INSERT INTO payloads VALUES ('e{number}', :payload, 'x')"), {"payload": b"input"})


def test_a_database_in_use_gains_dead_letters_and_loses_nothing(store_url: str) -> None:
    """SQLite copies the envelopes to change them; dropping the old ones must not take their payloads along."""
    found = database(store_url)
    at_first_revision(found)

    upgrade(found)

    with Store(store_url) as store:
        assert [(d.state.value, d.envelopes) for d in store.depth()] == [("accepted", 1), ("published", 1)]
        taken = store.take_overdue(now=1e9, overdue_s=0)
        assert [(envelope.id, envelope.payload, envelope.attempts) for envelope in taken] == [("e0", b"input", 0)]
        failed = result(0, envelope="e1", state=ResultState.FAILED, output=None)
        store.commit([failed], dead=["e1"])
        assert [letter.payload for letter in store.dead_letters.newest()] == [b"input"]
    found.close()


def test_the_first_revision_can_be_gone_back_to(store_url: str) -> None:
    """A dead envelope is done to a version that knows no other word; a job half purged does not stand in the way."""
    found = database(store_url)
    at_first_revision(found)
    upgrade(found)
    with Store(store_url) as store:
        store.add_envelopes([new_envelope("x0", job="x")], jobs=[new_job("x", ttl_s=5)])
        store.commit([result(0, envelope="e1", state=ResultState.FAILED, output=None)], dead=["e1"])
        store.commit([result(0, job="x", envelope="x0")], done=["x0"])
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = 'x'"))
        connection.execute(text("INSERT INTO purged_jobs VALUES ('x', 1)"))

    downgrade(found, "0001")

    with found.read() as connection:
        states = connection.execute(text("SELECT id, state FROM envelopes ORDER BY id")).all()
        assert [tuple(row) for row in states] == [("e0", "accepted"), ("e1", "done"), ("e2", "done")]
        assert connection.execute(text("SELECT count(*) FROM payloads")).scalar() == 3
        assert connection.execute(text("SELECT count(*) FROM results")).scalar() == 1
        with pytest.raises(DBAPIError):
            connection.execute(text("UPDATE envelopes SET state = 'dead'"))
    upgrade(found)
    found.close()


def at_the_revision_before_batches_were_jobs(found: Database) -> None:
    """A database with a batch in each state, left in the middle of its work."""
    upgrade(found, batches_before.REVISION)
    counts = {"total": 2, "completed": 2, "failed": 0}
    output = {"counts": counts, "job": "old", "output_file_id": "file-1-output"}
    with found.write(Weight.ACCEPTED) as connection:
        batches_before.insert_batch(connection, "batch_1", "completed", output, finished_at=150.0)
        batches_before.insert_batch(connection, "batch_2", "expired", {"counts": counts}, finished_at=150.0)
        batches_before.insert_batch(
            connection, "batch_3", "cancelled", {"counts": counts}, finished_at=150.0, cancelled_at=140.0
        )
        begun = {"counts": {**counts, "completed": 0}, "job": "j4", "task": "embedding", "in_progress_at": 120.0}
        batches_before.insert_batch(connection, "batch_4", "in_progress", begun, worker="w", leased_until=200.0)
        batches_before.insert_batch(connection, "batch_5", "cancelling", {"counts": counts}, cancelled_at=140.0)
        batches_before.insert_job(connection, "j4", "batch_4")
        for id_ in ("file-1-output", "file-4-output"):
            batches_before.insert_file(connection, id_, b"{}\n", purpose="batch_output")
        batches_before.insert_file(connection, "file-4", b"[]\n")


def test_open_batches_begin_anew_as_jobs_and_finished_ones_stay(store_url: str) -> None:
    """An open batch is any gateway's to submit: with its window anew, without the job and the files that were begun."""
    found = database(store_url)
    at_the_revision_before_batches_were_jobs(found)

    upgrade(found)
    began_at = time.time()

    with Store(store_url) as store:
        assert store.file_batches.unfinished() == []
        assert store.file_batches.adopt(now=began_at) == 2
        assert store.file_batches.adopt(now=began_at) == 0
        batches = {batch.id: batch for batch in store.file_batches.page(tenant="ours", after=None, limit=9)}
        assert {id_: batch.status for id_, batch in batches.items()} == {
            "batch_1": "completed",
            "batch_2": "expired",
            "batch_3": "cancelled",
            "batch_4": "validating",
            "batch_5": "cancelling",
        }
        assert [batch.id for batch in store.file_batches.unfinished()] == ["batch_4", "batch_5"]
        assert (batches["batch_1"].detail["job"], batches["batch_1"].finished_at) == ("old", 150.0)
        fresh = batches["batch_4"].detail
        assert fresh["expires_at"] == pytest.approx(began_at + 1000, abs=60)
        assert (fresh["input_file_id"], fresh["counts"]["total"], fresh.get("job")) == ("file-4", 0, None)
        assert store.files.part("file-1-output", 0) == b"{}\n"
        assert store.files.part("file-4", 0) == b"[]\n"
        assert store.files.find("file-4-output", tenant=None) is None
        assert store.job("j4").cancelled_at is not None
        again = store.create_job(replace(new_job("new"), tenant="ours", idempotency_key="batch_4"))
        assert again.id == "new"
    found.close()


def test_batches_that_are_jobs_can_be_gone_back_from(store_url: str) -> None:
    """The older version finds each batch in its state, the open ones to be begun anew."""
    found = database(store_url)
    at_the_revision_before_batches_were_jobs(found)
    upgrade(found)
    with Store(store_url) as store:
        store.file_batches.adopt(now=time.time())
        output = StoredFile(
            id="file-4-output", tenant="ours", name="o", purpose="batch_output", created_at=9.0, bytes=3, stored_at=9.0
        )
        store.file_batches.note("batch_4", {"job": "new"}, finished_at=9.0, files=[output])

    downgrade(found, batches_before.REVISION)

    with found.read() as connection:
        rows = connection.execute(text("SELECT id, status, cancelled_at FROM gateway_batches ORDER BY id")).all()
        files = connection.execute(text("SELECT id FROM gateway_files ORDER BY id")).scalars().all()
    assert [tuple(row) for row in rows] == [
        ("batch_1", "completed", None),
        ("batch_2", "expired", None),
        ("batch_3", "cancelled", 140.0),
        ("batch_4", "completed", None),
        ("batch_5", "cancelling", 140.0),
    ]
    assert files == ["file-1-output", "file-4"]
    upgrade(found)
    found.close()


def test_several_processes_may_start_at_once(store_url: str) -> None:
    """A fleet's nodes all migrate when they start; one does it, the others wait and find it done."""
    code = "import sys; from results_store.store import Store; s = Store(sys.argv[1]); s.migrate(); s.open(); s.close()"
    command = [sys.executable, "-W", "error", "-c", code, store_url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]

    outcomes = [(process.communicate()[1], process.returncode) for process in started]

    assert outcomes == [("", 0)] * 4


def test_a_database_without_tables_is_refused_with_the_remedy(store_url: str) -> None:
    """The first thing a newcomer meets; nothing may be created by looking."""
    with pytest.raises(SchemaMismatch, match="run `argosy migrate`"):
        Store(store_url).open()


def note_revision(found: Database, table: str, revision: str) -> None:
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text(f"UPDATE {table} SET version_num = :revision"), {"revision": revision})


def test_an_older_and_a_newer_schema_are_told_apart(store: Store, store_url: str) -> None:
    """Migrating would not help an old program before a new database."""
    found = database(store_url)
    found.open()
    note_revision(found, VERSION_TABLE, "0000")
    with pytest.raises(SchemaMismatch, match=r"the schema is 0000.*run `argosy migrate`"):
        Store(store_url).open()
    note_revision(found, VERSION_TABLE, "0999")
    with Store(store_url) as newer:
        assert newer.jobs() == []  # a later version has added to the schema, and says that this one may go on
    note_revision(found, "alembic_version", "0999")
    with pytest.raises(SchemaMismatch, match=r"the schema is 0999.*upgrade argosy here"):
        Store(store_url).open()
    found.close()


def test_code_of_an_older_revision_finds_its_own(store_url: str) -> None:
    """Processes of 0009 restart during an upgrade: they compare the first row of `alembic_version` with their own."""
    found = database(store_url)
    upgrade(found, "0009")
    assert revisions(found) == ("0009", "0009")
    upgrade(found)
    assert revisions(found) == (COMPATIBLE, REVISION) == ("0009", REVISION)
    downgrade(found, "0008")
    assert revisions(found) == ("0008", "0008")
    upgrade(found)
    found.close()


def test_chunks_are_stored_where_no_older_code_reads(store_url: str) -> None:
    """Older readers would miss results in silence: a new database refuses them, an older one once it is told to."""
    found = database(store_url)
    upgrade(found)
    assert revisions(found) == (CHUNKS, REVISION)
    with Store(store_url) as store:
        assert store.stores_chunks
    downgrade(found, "0016")
    upgrade(found)
    assert revisions(found) == (COMPATIBLE, REVISION)
    with Store(store_url) as store:
        assert not store.stores_chunks
        store.migrate(chunks=True)
    for _ in range(2):
        assert revisions(found) == (CHUNKS, REVISION)
        upgrade(found)
    with Store(store_url) as store:
        assert store.stores_chunks
    found.close()


def test_results_in_chunks_become_rows_on_the_way_back(store_url: str) -> None:
    """The older version finds each of them; a row that is there counts."""
    found = database(store_url)
    upgrade(found)
    rows = [result(seq, key=f"k{seq}", output=[{"label": "a", "score": 0.25}], tokens=seq) for seq in range(10)]
    vectors = [result(seq, "embedding", output=None, vector=pack_vector([seq, 0.5])) for seq in range(10)]
    chunks, failed = packed([*rows, *vectors[:9], replace(vectors[9], state=ResultState.FAILED, vector=None)])
    with Store(store_url) as store:
        submit(store, items=20)
        store.transact(Transaction(results=failed, chunks=chunks, done=["e0"], at=7.0))

    downgrade(found, "0016")

    with found.read() as connection:
        columns = "seq, task, state, key, output, vector, tokens, stored_at"
        there = connection.execute(text(f"SELECT {columns} FROM results ORDER BY seq, task")).all()
    assert [row[:4] for row in there[:2]] == [(0, "embedding", "succeeded", None), (0, "topic", "succeeded", "k0")]
    assert [row.state for row in there] == ["succeeded"] * 18 + ["failed", "succeeded"]
    outputs = [json.loads(row.output) if isinstance(row.output, str) else row.output for row in there]
    assert outputs[1::2] == [row.output for row in rows]
    assert [row.vector for row in there][:-2:2] == [row.vector for row in vectors[:9]]
    found.close()


def test_the_revision_of_a_database_of_an_older_version_is_known(store_url: str) -> None:
    """Up to 0009 it stood in the table that now has the oldest code which may run."""
    found = database(store_url)
    upgrade(found, "0009")
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    with pytest.raises(SchemaMismatch, match="run `argosy migrate`"):
        Store(store_url).open()
    upgrade(found)
    assert revisions(found) == (COMPATIBLE, REVISION)
    with Store(store_url) as store:
        submit(store)
    found.close()


def test_a_database_of_a_newer_version_is_not_migrated(store_url: str) -> None:
    """A sentence, and not Alembic's search for a revision that this version does not have."""
    found = database(store_url)
    upgrade(found)
    note_revision(found, VERSION_TABLE, "0999")
    with pytest.raises(SchemaMismatch, match=rf"the schema is 0999, newer than this version's {REVISION}; upgrade"):
        upgrade(found)
    found.close()


def test_the_revision_of_another_program_is_left_alone(store_url: str) -> None:
    """Alembic's own name for its table is everybody's: a schema of its own is the way out on PostgreSQL."""
    found = database(store_url)
    if found.sqlite:
        found.path.touch()
    found.open()
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('d41d8cd98f00')"))
    with pytest.raises(StoreError, match=r"another program keeps its revision .d41d8cd98f00. in the table") as caught:
        upgrade(found)
    with found.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["d41d8cd98f00"]
        assert inspect(connection).get_table_names() == ["alembic_version"]
        if not found.sqlite:
            connection.execute(text("CREATE SCHEMA argosy"))
    if not found.sqlite:
        assert "?options=-csearch_path%3Dargosy" in str(caught.value)
        own = Store(f"{store_url}{'&' if '?' in store_url else '?'}options=-csearch_path%3Dargosy")
        own.migrate()
        with own:
            submit(own)
    found.close()


@pytest.mark.parametrize("made", ["alembic_version", "jobs"])
def test_a_database_of_another_program_is_refused(store_url: str, made: str) -> None:
    """Many projects number their revisions like ours, and have a table of jobs. Nothing of it is changed."""
    found = database(store_url)
    if found.sqlite:
        found.path.touch()
    found.open()
    with found.write(Weight.ACCEPTED) as connection:
        connection.execute(text(f"CREATE TABLE {made} (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text(f"INSERT INTO {made} VALUES ('0009')"))
    with pytest.raises(StoreError, match=rf"another program .* table {made}.* in the store's URL"):
        upgrade(found)
    with found.read() as connection:
        assert inspect(connection).get_table_names() == [made]
    found.close()


def test_a_revision_that_another_program_wrote_over_ours_changes_nothing(store: Store, store_url: str) -> None:
    """As its `alembic stamp` does: our own revision is in a table of its own."""
    found = database(store_url)
    found.open()
    note_revision(found, "alembic_version", "d41d8cd98f00")
    with Store(store_url) as again:
        assert again.jobs() == []
    upgrade(found)
    assert revisions(found) == ("d41d8cd98f00", REVISION)
    found.close()


def test_a_user_without_rights_in_the_schema_is_told_the_ways_out(postgresql_url: str) -> None:
    """PostgreSQL 15 and later give no right in `public` to others than its owner."""
    owner = database(postgresql_url)
    owner.open()
    with owner.write(Weight.ACCEPTED) as connection:
        connection.execute(text("CREATE ROLE guest LOGIN"))
    try:
        guest = str(owner.url.set(username="guest", drivername="postgresql").render_as_string(hide_password=False))
        store = Store(guest)
        with pytest.raises(StoreError, match=r"permission denied for schema public; grant .*csearch_path%3Dargosy"):
            store.migrate()
        store.close()
    finally:
        with owner.write(Weight.ACCEPTED) as connection:
            connection.execute(text("DROP ROLE guest"))
        owner.close()


def test_a_migration_that_waits_for_a_table_holds_nobody_up(postgresql_url: str) -> None:
    """Somebody's open transaction holds up the migration, and not the fleet, which would wait behind it."""
    found, reader, fleet = database(postgresql_url), database(postgresql_url), database(postgresql_url)
    upgrade(found, "0009")
    reader.open()
    fleet.open()
    with ThreadPoolExecutor(1) as pool:
        with reader.write(Weight.NOTE) as forgotten:
            forgotten.execute(text("SELECT count(*) FROM envelopes"))
            migrated = pool.submit(upgrade, found)
            with fleet.read() as connection:
                until(lambda: connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar())
            with fleet.write(Weight.NOTE) as connection:
                connection.execute(text("UPDATE envelopes SET attempts = 1"))
            assert not migrated.done()
        migrated.result()
    assert revisions(found) == (COMPATIBLE, REVISION)
    for one in (found, reader, fleet):
        one.close()


#: A migration that holds the envelopes and waits for the jobs.
_CROSSED = """
SELECT count(*) FROM pg_locks AS has JOIN pg_locks AS wants USING (pid)
WHERE has.granted AND has.mode = 'AccessExclusiveLock' AND has.relation = 'envelopes'::regclass
AND NOT wants.granted AND wants.relation = 'jobs'::regclass
"""


def test_a_migration_in_a_deadlock_gives_way(postgresql_url: str) -> None:
    """A submission locks jobs before envelopes, some revisions the other way round."""
    found, fleet, watcher = (database(postgresql_url) for _ in range(3))
    upgrade(found, "0009")
    fleet.open()
    watcher.open()
    with ThreadPoolExecutor(1) as pool:
        with fleet.write(Weight.NOTE) as submission:
            submission.execute(text("LOCK TABLE jobs IN ROW EXCLUSIVE MODE"))
            migrated = pool.submit(upgrade, found)
            with watcher.read() as connection:
                until(lambda: connection.execute(text(_CROSSED)).scalar())
                limit_ms = text("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'")
                assert int(connection.execute(limit_ms).scalar_one()) > run.LOCK_WAIT_MS
            submission.execute(text("LOCK TABLE envelopes IN ROW EXCLUSIVE MODE"))
        migrated.result()
    assert revisions(found) == (COMPATIBLE, REVISION)
    for one in (found, fleet, watcher):
        one.close()


def revisions(found: Database) -> tuple[str, str]:
    with found.read() as connection:
        oldest = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        return oldest, connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one()


def test_the_folder_of_an_sqlite_file_is_made(tmp_path: Any) -> None:
    """The first start on a bare machine has no data folder yet."""
    store = Store(f"sqlite:///{tmp_path}/a b/c%20d/argosy.db")
    store.migrate()
    with store:
        assert store.jobs() == []
    store.close()


def test_sqlite_logs_ahead_so_that_readers_never_wait(sqlite_url: str) -> None:
    """Progress must be readable while a worker writes."""
    store = Store(sqlite_url)
    store.migrate()
    with store:
        submit(store)
        found = database(sqlite_url)
        found.open()
        with found.write(Weight.ACCEPTED):
            assert store.job("job").items == 1
        found.close()


def test_envelopes_in_columns_have_items_on_the_way_back(store_url: str) -> None:
    """The older version computes them, and replays those that failed."""
    found = database(store_url)
    upgrade(found)
    items = [Item(seq, f"é {seq}", ("topic",), {"topic": {"top_k": 2}}, key) for seq, key in ((3, None), (5, "k"))]
    usual = {"version": VERSION, "job": "job", "model": "text", "priority": Priority.BULK, "tenant": "t"}
    sent = [
        Envelope(**usual, id=id_, queued_at=1.5, deadline_at=9.0, items=tuple(own))  # type: ignore[arg-type]
        for id_, own in (("a", items), ("b", items[:1]))
    ]
    with Store(store_url) as store:
        store.add_envelopes([outbox_row(one, 0, in_columns=True) for one in sent], jobs=[new_job()])

    downgrade(found, "0016")

    with found.read() as connection:
        there = connection.execute(text("SELECT payload, content_type FROM payloads ORDER BY envelope")).all()
    assert [decode(decode_bytes(bytes(payload), content_type)) for payload, content_type in there] == [
        (one, []) for one in sent
    ]
    assert {row.content_type for row in there} == {MSGPACK}
    found.close()
