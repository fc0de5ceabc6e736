"""PostgreSQL behind PgBouncer in transaction mode, which gives each transaction any of a few sessions."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from producers.client.client import Client
from results_store.errors import StoreError, StoreUnavailable
from results_store.sql.database import Weight, translate
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.processes import until
from tests.integration.stand_in import StandIn

PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer (Debian: apt-get install pgbouncer)")

CONFIG = """
[databases]
{name} = host={host} port={port} user={user} dbname={name}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 2
max_client_conn = 200
logfile = {folder}/log
"""


@contextmanager
def _pooler(url: str, mode: str) -> Iterator[str]:
    """A PgBouncer with two sessions for all, before a database."""
    given: Any = conninfo_to_dict(url)
    listen, name = free_port(), given["dbname"]
    folder = Path(tempfile.mkdtemp(prefix="argosy-bouncer-"))
    config = folder / "pgbouncer.ini"
    settings = {"user": given["user"], "host": given["host"], "port": given.get("port", 5432), "name": name}
    config.write_text(CONFIG.format(**settings, listen=listen, mode=mode, folder=folder), encoding="utf-8")
    user = []
    if os.geteuid() == 0:  # it refuses to be root; the server's own user may use its socket
        user = ["--user", "embedded_postgres"]
        shutil.chown(folder, "embedded_postgres")
    process = subprocess.Popen([PGBOUNCER or "", *user, "--quiet", str(config)])
    pooled = f"postgresql://{getpass.getuser()}@127.0.0.1:{listen}/{name}"
    try:
        until(lambda: _answers(pooled))
        yield pooled
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def pooled_url(postgresql_url: str) -> Iterator[str]:
    migrate(postgresql_url)
    with _pooler(postgresql_url, "transaction") as url:
        yield url


def migrate(url: str) -> None:
    store = Store(url)
    store.migrate()
    store.close()


@needs_pgbouncer
def test_processes_share_sessions(pooled_url: str, broker_url: str) -> None:
    """Each statement is run often enough to be prepared, in sessions that another process has just used."""
    texts = [f"text {number}" for number in range(60)]
    with Store(pooled_url) as store, Client(broker_url, pooled_url) as one, Client(broker_url, pooled_url) as other:
        job = one.submit_many("topic", texts * 10, idempotency_key="pooled")
        stand_in = StandIn(broker_url, store)
        with ThreadPoolExecutor(9) as pool:
            asked = [pool.submit(client.submit, "topic", text) for text in texts for client in (one, other)]
            pool.submit(stand_in.work_off, 600 + len(asked)).result()
            answers = [future.result().result(60)[0]["label"] for future in asked]
        assert answers == [f"topic of {text}" for text in texts for _ in range(2)]
        assert job.wait(60).succeeded == 600
        assert store.is_pooled()
        with store._database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar() == 0


@needs_pgbouncer
def test_no_setting_stays_in_a_session(pooled_url: str) -> None:
    """Another application gets the session next. A transaction of ours is bounded nevertheless."""
    with Store(pooled_url, timeout_s=20) as store:
        for _ in range(8):
            store.jobs(limit=1)
        with store._database.write(Weight.NOTE) as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == "19s"
            assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "19s"
        with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as another:
            for _ in range(8):
                assert another.execute("SHOW statement_timeout").fetchone() == ("0",)
                assert another.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)


def test_a_session_without_a_pooler_has_its_settings_and_statements(postgresql_url: str) -> None:
    migrate(postgresql_url)
    with Store(postgresql_url, timeout_s=20) as store:
        for _ in range(8):
            store.jobs(limit=1)
        assert not store.is_pooled()
        with store._database.read() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == "19s"
            assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar()


@pytest.mark.parametrize(
    ("error", "outage", "said"),
    [
        (
            errors.DuplicatePreparedStatement('prepared statement "_pg3_1" already exists'),
            False,
            "add [?]prepare_threshold=none to the store's URL",
        ),
        (
            errors.ProtocolViolation('bind message supplies 11 parameters, but prepared statement "_pg3_0" requires 0'),
            False,
            "add [?]prepare_threshold=none to the store's URL",
        ),
        (errors.ProtocolViolation("server_login_retry"), True, "check that the database server is up"),
    ],
)
def test_a_pooler_that_hides_is_named_and_its_outage_is_an_outage(
    error: psycopg.Error, outage: bool, said: str
) -> None:
    """It gives all its errors one SQLSTATE. Waiting cures only some of them."""
    found = translate(error, "store")
    assert isinstance(found, StoreUnavailable) is outage
    assert re.search(said, str(found))


@needs_pgbouncer
def test_a_pooler_that_shares_a_session_within_a_transaction_is_named(postgresql_url: str) -> None:
    migrate(postgresql_url)
    with _pooler(postgresql_url, "statement") as url:
        for query, said in (("", "pool_mode to transaction"), ("?options=-cgeqo%3Doff", "ignore_startup_parameters")):
            with pytest.raises(StoreError, match=said), Store(url + query):
                pass


@pytest.mark.parametrize(("query", "prepared"), [("prepare_threshold=none", False), ("prepare_threshold=0", True)])
def test_an_option_in_the_url_wins(postgresql_url: str, query: str, prepared: bool) -> None:
    migrate(postgresql_url)
    with Store(f"{postgresql_url}{'&' if '?' in postgresql_url else '?'}{query}") as store:
        store.jobs(limit=1)
        with store._database.read() as connection:
            found = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar()
            assert bool(found) is prepared


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("prepare_threshold=None", "prepare_threshold='None'; write a number"),
        ("prepare_threshold=-1", "write a number"),
        ("autocommit=1", "the parameter 'autocommit', which PostgreSQL does not know"),
        ("row_factory=x", "the parameter 'row_factory'"),
        ("connect_timeout=soon", "bad value for connect_timeout"),
    ],
)
def test_a_wrong_option_in_postgresqls_url_is_a_sentence(query: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught, Store(f"postgresql://nobody@127.0.0.1:1/none?{query}"):
        pass
    assert not isinstance(caught.value, StoreUnavailable)
