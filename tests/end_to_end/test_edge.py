"""A site and its centre: who answers, without the link, and what never leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.sites import Sites, sites_in


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """A site and a centre for all tests of the module; none may break them or leave the link cut."""
    with sites_in(tmp_path_factory.mktemp("sites")) as found:
        yield found


def test_the_centre_answers_what_the_site_is_unsure_of(sites: Sites) -> None:
    """A program at the site submits as to any fleet; each row says who answered, and has both answers where there are two."""
    job = sites.client.submit_many("animal", ["cat 0.9", "dog 0.4"], priority="standard")
    job.wait(30)
    sure, unsure = sites.rows(job.id)

    assert sure.output == [{"label": "cat", "score": 0.9, "cascade": {"by": "site", "why": "confident"}}]
    (answer,) = unsure.output
    assert (answer["label"], answer["score"]) == ("the dog", 0.4)
    assert answer["cascade"] == {"by": "centre", "why": "unsure", "site": [{"label": "dog", "score": 0.4}]}
