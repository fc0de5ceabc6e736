"""A site that is too slow for an envelope computes the part that it can in time, and the centre the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.processes import until
from tests.end_to_end.sites import sites_in

pytestmark = pytest.mark.edge


@pytest.mark.timeout(300)
def test_an_envelope_is_split_between_site_and_centre(tmp_path: Path) -> None:
    """The job is one, with its results in order, each computed once: the first ones by the site, the others by the centre.

    An item takes the site a quarter of a second, so the envelope would take it three seconds more than there are.
    """
    with sites_in(tmp_path, row_s=0.25, share_load=True) as sites:
        sites.client.submit_many("animal", [f"ant{n} 0.9" for n in range(8)]).wait(60)
        until(lambda: sites.status()["link"] == "up")

        job = sites.client.submit_many("animal", [f"bee{n} 0.9" for n in range(60)], deadline_s=12)
        job.wait(60)

        progress, rows = job.progress(), sites.rows(job.id)
        assert (progress.total, progress.succeeded) == (60, 60)
        assert len({row.envelope for row in rows}) == 1
        assert [row.seq for row in rows] == list(range(60))
        said = [row.output[0] for row in rows]
        kept = sum(one["cascade"]["by"] == "site" for one in said)
        assert 0 < kept < 60
        assert [one["label"] for one in said] == [f"{'' if n < kept else 'the '}bee{n}" for n in range(60)]
        assert [one["cascade"]["why"] for one in said] == ["confident"] * kept + ["load"] * (60 - kept)
        assert sorted(row.output[0]["label"] for row in sites.at_centre("bee")) == sorted(
            f"the bee{n}" for n in range(kept, 60)
        )
        until(lambda: not sites.spool)
