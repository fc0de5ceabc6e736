"""Sites as their centre sees them: counts, models and versions, by tenant."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest
from click.testing import CliRunner
from redis import Redis

from producers.commands.main import main
from producers.gateway.metrics.broker_look import look_at_broker
from producers.gateway.metrics.fleet_gauges import _of_broker
from producers.gateway.schemas import ReportedSite
from producers.wire.edge import told_sites
from producers.wire.edge.told_sites import MOST_SITES, SITES, SiteReport, ToldSite, TooManySites, tell_site
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving

REPORT = {"version": "0.1.0", "models": {"text": "3f2a"}, "waiting": 3, "sent": 20, "by_centre": 15, "by_site": 45}


@pytest.fixture
def served(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("ARGOSY_STORE_URL", store_url)
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    with serving(broker_url, store_url) as found:
        yield found


@pytest.fixture
def harbour(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.key("harbour")) as found:
        yield found


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    with Redis.from_url(broker_url) as found:
        yield found


def test_a_tenant_sees_its_own_sites_and_an_operator_all(served: Served, harbour: httpx.Client) -> None:
    told = harbour.put("/api/sites/quay-1", json=REPORT | {"agreed": 9, "differed": 1}).json()
    assert harbour.get("/api/sites").json()["sites"] == [told]
    assert {name: told[name] for name in REPORT} == REPORT
    assert (told["tenant"], told["site"], told["away"]) == ("harbour", "quay-1", False)
    assert (told["share_sent"], told["agreement"]) == (0.25, 0.9)
    with served.client(served.key("others")) as others:
        assert others.put("/api/sites/quay-1", json={}).status_code == 200
        assert [one["tenant"] for one in others.get("/api/sites").json()["sites"]] == ["others"]
    with served.client(served.key("boss", operator=True)) as boss:
        assert [one["tenant"] for one in boss.get("/api/sites").json()["sites"]] == ["harbour", "others"]


def test_a_site_that_keeps_its_counts_has_no_share(harbour: httpx.Client) -> None:
    told = harbour.put("/api/sites/quay-1", json=REPORT | {"by_site": None}).json()
    assert (told["by_site"], told["share_sent"], told["agreement"]) == (None, None, None)


def test_the_gateway_reads_all_that_a_site_tells() -> None:
    """A field that only one of the two knows would be lost without a word."""
    assert set(ReportedSite.model_fields) == set(SiteReport.__struct_fields__)


def test_a_newer_site_may_tell_more_and_nobody_nonsense(harbour: httpx.Client) -> None:
    assert harbour.put("/api/sites/quay-1", json=REPORT | {"heat": 40}).status_code == 200
    for wrong in ({"sent": -1}, {"sent": 2**60}, {"models": {"text": "x" * 300}}, {"version": 1}):
        assert harbour.put("/api/sites/quay-1", json=REPORT | wrong).status_code == 422
    assert harbour.put("/api/sites/a%20b", json=REPORT).status_code == 422


def test_silent_sites_are_away_and_then_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program has written there is forgotten, too."""
    for name, silent_s in (("here", 0.0), ("away", 600.0), ("gone", told_sites.FORGOTTEN_AFTER_S + 60)):
        tell_site(redis, ToldSite(tenant="harbour", site=name, at=time.time() - silent_s))
    redis.hset(SITES, "harbour/odd", "no JSON")
    assert [(one.site, one.away) for one in told_sites.told_sites(redis)] == [("away", True), ("here", False)]
    assert sorted(redis.hkeys(SITES)) == [b"harbour/away", b"harbour/here"]


def test_a_tenant_has_so_many_sites(redis: Redis) -> None:
    """Those that it has go on telling; other tenants have places of their own."""
    for number in range(MOST_SITES):
        tell_site(redis, ToldSite(tenant="harbour", site=f"quay-{number}", at=time.time()))
    with pytest.raises(TooManySites):
        tell_site(redis, ToldSite(tenant="harbour", site="one-more", at=time.time()))
    for tenant, site in (("harbour", "quay-0"), ("others", "one-more")):
        tell_site(redis, ToldSite(tenant=tenant, site=site, at=time.time()))


def test_argosy_status_shows_the_sites(harbour: httpx.Client) -> None:
    harbour.put("/api/sites/quay-1", json=REPORT)
    shown = CliRunner().invoke(main, ["status"])
    assert shown.exit_code == 0, shown.output
    for part in ("quay-1", "harbour", "25.0%", "text 3f2a"):
        assert part in shown.output


def test_metrics_have_the_sites(redis: Redis) -> None:
    tell_site(redis, ToldSite(tenant="harbour", site="quay-1", at=time.time() - 30, waiting=3, agreed=9, differed=1))
    found = {
        (sample.name, sample.labels["site"]): sample.value
        for metric in _of_broker(look_at_broker(redis, (), ()))
        for sample in metric.samples
        if sample.name.startswith("argosy_site_")
    }
    assert found["argosy_site_told_age_seconds", "quay-1"] >= 30
    assert found["argosy_site_waiting_items", "quay-1"] == 3
    assert found["argosy_site_agreement_ratio", "quay-1"] == 0.9


def test_a_key_of_another_type_leaves_the_other_metrics(redis: Redis) -> None:
    redis.set(SITES, "another program's")
    assert look_at_broker(redis, (), ()).sites == ()
