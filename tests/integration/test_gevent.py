"""A client in a process that gevent has patched, as by `gunicorn --worker-class gevent`: R15 of the cases."""

from __future__ import annotations

import subprocess
import sys

import pytest

from results_store.store import Store
from tests.end_to_end.documents import ROOT
from tests.integration.stand_in import StandIn

PATCHED = """
from gevent import monkey

monkey.patch_all()

import gevent
from gevent.pool import Pool

from producers import Client


def ask(text):
    return client.submit("topic", text).result(60)[0]["label"]


with Client() as client:
    print(ask("first"), client.submit("topic", "direct", durable=False).result(60)[0]["label"])
    print([*Pool(20).map(ask, map(str, range(20)))] == [f"topic of {n}" for n in range(20)])
    job = client.submit_many("topic", map(str, range(200)))
    ticks = gevent.spawn(lambda: [gevent.sleep(0) for _ in range(1000)])
    print(job.wait(60).succeeded, len([*job.results()]), len(ticks.get()))
"""


def test_a_client_works_in_a_process_that_gevent_has_patched(
    broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and together, durable or not, and a job; other greenlets go on meanwhile."""
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    with subprocess.Popen([sys.executable, "-c", PATCHED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        StandIn(broker_url, store).work_off(222)
        said, _ = process.communicate()
    assert (process.returncode, said.splitlines()) == (0, ["topic of first topic of direct", "True", "200 200 1000"])
