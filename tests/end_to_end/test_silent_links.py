"""A worker whose connections to Redis go silent without a word, as when a firewall forgets them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from producers import Client
from tests.end_to_end.processes import until
from tests.silent_link import SilentLink, to_port
from workers.fleet.local import LocalFleet

TIMEOUT_S = 90


@pytest.fixture
def link(fleet: LocalFleet) -> Iterator[SilentLink]:
    """The way of the fleet's worker to Redis; clients have their own."""
    port = urlsplit(fleet.broker_url).port
    assert port
    service = fleet.workers[0]
    assert service.ready_file
    with SilentLink(to_port(port)) as link:
        service.stop()
        far = fleet.broker_url.replace(f":{port}", f":{link.port}")
        service.environment = {**service.environment, "ARGOSY_BROKER_URL": far}
        service.start()
        until(service.ready_file.exists)
        yield link
        service.stop()


@pytest.mark.faults
def test_a_worker_notices_silence_and_works_on(link: SilentLink, client: Client) -> None:
    """Whether it works or waits for work at that moment."""
    client.submit("echo", "before").result(TIMEOUT_S)
    assert link.hush()
    client.submit("echo", "while it waits").result(TIMEOUT_S)
    job = client.submit_many(["echo", "shout"], [f"sleep 0.2 item {n}" for n in range(200)])
    until(lambda: job.progress().done)
    assert link.hush()
    assert job.wait(TIMEOUT_S).succeeded == 400


@pytest.mark.faults
def test_a_worker_stops_while_its_broker_is_silent(link: SilentLink, client: Client, fleet: LocalFleet) -> None:
    """No answer, no new connection: it ends by itself on SIGTERM."""
    client.submit("echo", "before").result(TIMEOUT_S)
    link.hush(new=True)
    process = fleet.workers[0].process
    assert process is not None
    process.terminate()
    process.wait(TIMEOUT_S)
