"""What has been said to be stored stays stored."""

from __future__ import annotations

import subprocess
import sys

import pytest

from results_store.sql.database import Database, Weight
from results_store.store import Store
from tests.integration.rows import new_job

DIE_AFTER_ACCEPTING = """
import os, signal, sys
from results_store.records import NewEnvelope
from results_store.store import Store
from tests.integration.rows import new_envelope, result
store = Store(sys.argv[1]).open()
store.add_envelopes([new_envelope("e0")])
store.commit([result(0)], done=["e0"])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_takes_nothing_with_it(store: Store, store_url: str) -> None:
    """kill -9 right after the store has answered: what it answered for is there, and nobody is locked out."""
    store.create_job(new_job())

    died = subprocess.run([sys.executable, "-c", DIE_AFTER_ACCEPTING, store_url], check=False)

    assert died.returncode == -9
    assert store.job("job").finished
    store.add_envelopes([], jobs=[new_job("next")])


@pytest.mark.parametrize(
    ("weight", "sqlite", "postgresql"),
    [(Weight.ACCEPTED, 2, "on"), (Weight.RESULTS, 1, "on"), (Weight.NOTE, 1, "off")],
)
@pytest.mark.usefixtures("store")
def test_the_disk_is_waited_for_where_it_matters(store_url: str, weight: Weight, sqlite: int, postgresql: str) -> None:
    """Accepting waits for the disk on both databases; a lease does on neither (2 is FULL, 1 is NORMAL)."""
    database = Database(store_url, timeout_s=30)
    database.open()
    setting = "PRAGMA synchronous" if database.sqlite else "SHOW synchronous_commit"
    with database.write(weight) as connection:
        found = connection.exec_driver_sql(setting).scalar()
    database.close()

    assert found == (sqlite if database.sqlite else postgresql)
