"""Questions that a site and a centre of two nodes answer together, while one of the nodes dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.processes import until
from tests.end_to_end.sites import Sites, sites_in

pytestmark = pytest.mark.edge

#: The site is sure of every third.
QUESTIONS = [f"question{n} {0.9 if n % 3 == 0 else 0.3}" for n in range(180)]


@contextmanager
def watched(sites: Sites) -> Iterator[None]:
    """The centre's nodes are started again when they end, as by `argosy up`."""
    thread = threading.Thread(target=sites.centre.watch)
    thread.start()
    try:
        yield
    finally:
        sites.centre.request_stop()
        thread.join()


@pytest.mark.timeout(300)
def test_a_node_of_the_centre_dies_and_the_answers_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """The same answers by the same side, each stored once at both, and computed for one job at the site."""
    with sites_in(tmp_path, centre_row_s=0.1, centre_nodes=2) as sites, watched(sites):
        undisturbed = sites.client.submit_many("animal", QUESTIONS)
        undisturbed.wait(120)
        before = len(sites.at_centre("question"))

        job = sites.client.submit_many("animal", QUESTIONS)
        until(lambda: before < len(sites.at_centre("question")) < 2 * before)
        node = sites.centre.workers[1].process
        assert node
        node.kill()
        job.wait(120)

        rows, expected = sites.rows(job.id), sites.rows(undisturbed.id)
        assert [(row.seq, row.output) for row in rows] == [(row.seq, row.output) for row in expected]
        assert [row.seq for row in rows] == list(range(len(QUESTIONS)))
        assert {row.output[0]["cascade"]["by"] for row in rows} == {"site", "centre"}
        assert job.progress().succeeded == len(QUESTIONS)
        assert len(sites.at_centre("question")) == 2 * before == 2 * 120
