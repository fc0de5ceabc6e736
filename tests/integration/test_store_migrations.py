"""Bringing a database up to date, and refusing one that is not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from results_store.columns import pack_vector
from results_store.database import Database, Weight
from results_store.errors import SchemaMismatch
from results_store.migrations.run import configuration, downgrade, upgrade
from results_store.schema import REVISION, metadata
from results_store.store import Store
from tests.integration.rows import batch, result, submit


def database(url: str) -> Database:
    return Database(url, timeout_s=30)


def test_the_migrations_build_exactly_the_tables_that_the_code_uses(store: Store, store_url: str) -> None:
    """Two descriptions of one schema drift apart unless something holds them together."""
    found = database(store_url)
    found.open()
    with found.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
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
    assert store.recent_batches() == [batch("b0")]


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
        assert inspect(connection).get_table_names() == ["alembic_version"]
    upgrade(found)
    found.close()

    with store:
        assert store.jobs() == []
        submit(store)


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


def test_an_older_and_a_newer_schema_are_told_apart(store: Store, store_url: str) -> None:
    """Migrating would not help an old program before a new database."""
    found = database(store_url)
    found.open()
    for revision, remedy in (("0000", "run `argosy migrate`"), ("0999", "upgrade argosy here")):
        with found.write(Weight.ACCEPTED) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        with pytest.raises(SchemaMismatch, match=f"the schema is {revision}.*{remedy}"):
            Store(store_url).open()
    found.close()


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
