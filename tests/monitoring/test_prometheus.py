"""A real Prometheus scrapes a real fleet: every query of the dashboards finds something, and every alert fires."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml

from producers import Client, ItemFailed
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from tests.monitoring.prometheus import FOLDER, ask, gateway, prometheus, queries

pytestmark = [
    pytest.mark.monitoring,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus: apt-get install prometheus"),
]

#: For each alert the series that make it fire (promtool's notation, a value a minute), and the minute at which it does.
FIRES: dict[str, tuple[dict[str, str], int]] = {
    "ArgosyMetricsMissing": ({"up": "0x10"}, 5),
    "ArgosyStoreAway": ({"argosy_store_up": "0x10"}, 5),
    "ArgosyBrokerAway": ({"argosy_broker_up": "0x10"}, 5),
    "ArgosyNoWorkers": ({"argosy_wanted_workers": "1x10", "argosy_workers": "0x10"}, 5),
    "ArgosyModelUnserved": ({'argosy_queue_items{model="a"}': "5x10", 'argosy_queue_items{model="b"}': "5x10",
                             'argosy_model_workers{model="b",state="serving"}': "1x10"}, 5),
    "ArgosyInteractiveWaits": ({'argosy_queue_oldest_age_seconds{model="a",priority="interactive"}': "11x10"}, 5),
    "ArgosyBehind": ({"argosy_wanted_workers": "3x30", "argosy_workers": "2x30"}, 20),
    "ArgosyStuck": (
        {
            "argosy_queue_envelopes": "3x30",
            "argosy_paused_envelopes": "2x30",
            "argosy_postponed_envelopes": "0x30",
            "argosy_workers": "2x30",
            "argosy_batches_total": "7x30",
        },
        25,
    ),
    "ArgosyDeadLetters": ({"argosy_dead_letters": "2x20 3x5"}, 22),
    "ArgosyFailures": ({'argosy_failed_results_total{task="t",kind="k"}': "0+60x20"}, 18),
    "ArgosyWorkersDie": ({"argosy_envelope_worker_deaths": "3x10"}, 5),
    "ArgosyWorkerRestarts": ({'argosy_worker_start_time_seconds{worker="w"}': "1x3 2x3 3x3 4x5"}, 12),
    "ArgosyStoreSlow": ({'argosy_worker_transaction_seconds_total{worker="w"}': "0+90x30",
                         'argosy_worker_transactions_total{worker="w"}': "0+60x30"}, 20),
    "ArgosyRefusedMessages": ({"argosy_broker_last_refusal_time_seconds": "1200x25"}, 22),
    "ArgosyBrokerFull": ({"argosy_broker_memory_bytes": "95x10", "argosy_broker_memory_limit_bytes": "100x10"}, 8),
}  # fmt: skip

#: Series that make an alert fire as well: replayed envelopes that are given up again.
ALSO_FIRES = [("ArgosyDeadLetters", {"argosy_dead_letters": "60x20 0x5 60x10"}, 28)]

TRAINING, TEXT = '{model="training"}', '{model="text"}'

#: Series at which an alert stays silent at a minute: old dead letters after a gap of scraping, a training that is the
#: only work, models whose workers load another version, old refusals.
SILENT: list[tuple[str, dict[str, str], int]] = [
    ("ArgosyDeadLetters", {"argosy_dead_letters": "2x5 stale stale 2x30"}, 9),
    ("ArgosyDeadLetters", {"argosy_dead_letters": "2x5 _x20 2x30"}, 28),
    (
        "ArgosyStuck",
        {
            f"argosy_queue_envelopes{TRAINING}": "3x30",
            f"argosy_queue_envelopes{TEXT}": "0x30",
            f"argosy_paused_envelopes{TRAINING}": "1x30",
            f"argosy_paused_envelopes{TEXT}": "0x30",
            f"argosy_postponed_envelopes{TRAINING}": "0x30",
            f"argosy_postponed_envelopes{TEXT}": "0x30",
            "argosy_workers": "2x30",
            "argosy_batches_total": "7x30",
        },
        25,
    ),
    (
        "ArgosyModelUnserved",
        {
            f"argosy_queue_items{TEXT}": "5x10",
            'argosy_queue_items{model="b"}': "5x10",
            'argosy_model_workers{model="text",state="loading"}': "1x10",
            'argosy_model_workers{model="b",state="failed"}': "1x10",
        },
        8,
    ),
    ("ArgosyRefusedMessages", {"argosy_broker_last_refusal_time_seconds": "600x60"}, 40),
]

ALERTS = [rule["alert"] for rule in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]]


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_files(tmp_path: Path) -> None:
    """As they are mounted by the profile `monitoring`."""
    promtool("check", "rules", str(FOLDER / "alerts.yml"))
    text = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus/", f"{FOLDER}/")
    (tmp_path / "prometheus.yml").write_text(text)
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@pytest.mark.parametrize(("alert", "series", "minute"), [*((alert, *FIRES[alert]) for alert in ALERTS), *ALSO_FIRES])
def test_an_alert_fires_when_it_should_and_not_before(
    alert: str, series: dict[str, str], minute: int, tmp_path: Path
) -> None:
    """Each once: promtool fails for an alert that is missing and for one too many."""
    _alone(tmp_path, alert)
    found = subprocess.run(
        ["promtool", "test", "rules", str(_scenario(tmp_path, alert, series, minute))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode != 0, "it did not fire"
    fired = re.search(r"got:\[\s*(.*?)\s*\]\s*$", found.stdout + found.stderr, re.MULTILINE | re.DOTALL)
    assert fired, found.stdout + found.stderr
    assert fired[1].count("Labels:") == 1
    promtool("test", "rules", str(_scenario(tmp_path, alert, {}, 0)))


@pytest.mark.parametrize(("alert", "series", "minute"), SILENT)
def test_an_alert_stays_silent(alert: str, series: dict[str, str], minute: int, tmp_path: Path) -> None:
    _alone(tmp_path, alert)
    promtool("test", "rules", str(_scenario(tmp_path, alert, series, minute)))


def _alone(folder: Path, alert: str) -> None:
    """Write the rule of an alert into a file of its own."""
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    rule = next(rule for rule in rules if rule["alert"] == alert)
    (folder / "rule.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))


def _scenario(folder: Path, alert: str, series: dict[str, str], minute: int) -> Path:
    told = [{"series": name, "values": values} for name, values in series.items()]
    case = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
    path = folder / "scenario.yml"
    tests = [{"interval": "1m", "input_series": told, "alert_rule_test": [case]}]
    path.write_text(
        yaml.safe_dump({"rule_files": [str(folder / "rule.yml")], "evaluation_interval": "1m", "tests": tests})
    )
    return path


def test_every_query_of_the_dashboards_finds_something(tmp_path: Path) -> None:
    """With a fleet that computes for two tenants at two priorities, and fails for one."""
    with (
        fleet_in(tmp_path, SCRIPTED) as fleet,
        gateway(tmp_path) as (main, beside),
        prometheus(tmp_path, beside) as url,
        Client(fleet.broker_url, fleet.store_url) as client,
    ):
        until(lambda: 1.0 in ask(url, "argosy_store_up"), 120)
        missing = queries()

        def found_all() -> bool:
            """Give the fleet some work, and try the queries that found nothing yet."""
            job = client.submit_many(["echo", "shout"], [f"text {n}" for n in range(64)], tenant="acme")
            with pytest.raises(ItemFailed):
                client.submit("echo", "raise").result(timeout_s=120)
            job.wait(timeout_s=120)
            assert httpx.get(f"{main}/api/tasks", timeout=30).status_code == 200
            missing[:] = [query for query in missing if not ask(url, query)]
            return not missing

        try:
            until(found_all, 600)
        finally:
            assert missing == []
        assert ask(url, "argosy_workers") == [1.0]
        firing = httpx.get(f"{url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        assert {alert["labels"]["alertname"] for alert in firing if alert["state"] == "firing"} <= {"ArgosyFailures"}
