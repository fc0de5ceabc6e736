"""The files of the profile `monitoring`: dashboards have Grafana's form, queries name our metrics, alerts a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
BOARDS = sorted((FOLDER / "dashboards").glob("*.json"))


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    """A part of Grafana's JSON model of a dashboard (grafana.com/docs, "Dashboard JSON model")."""


class Place(_Part):
    h: int
    w: int
    x: int
    y: int


class Source(_Part):
    type: str
    uid: str


class Target(_Part):
    refId: str  # noqa: N815 - Grafana's name
    datasource: Source
    expr: str
    legendFormat: str  # noqa: N815


class FieldConfig(_Part):
    defaults: dict[str, Any]
    overrides: list[Any]


class Panel(_Part):
    id: int
    type: str
    title: str
    gridPos: Place  # noqa: N815
    datasource: Source | None = None
    fieldConfig: FieldConfig | None = None  # noqa: N815
    targets: list[Target] = []
    options: dict[str, Any] = {}
    collapsed: bool = False
    panels: list[Any] = []


class Dashboard(_Part):
    uid: str
    title: str
    tags: list[str]
    timezone: str
    schemaVersion: int  # noqa: N815
    version: int
    editable: bool
    graphTooltip: int  # noqa: N815
    refresh: str
    time: dict[str, str]
    annotations: dict[str, list[Any]]
    templating: dict[str, list[Any]]
    links: list[Any]
    panels: list[Panel]


def boards() -> list[Dashboard]:
    return [msgspec.json.decode(path.read_bytes(), type=Dashboard) for path in BOARDS]


def test_the_dashboards_have_grafanas_form() -> None:
    """Grafana itself is not here: fields, places and the provisioned source are checked."""
    source = yaml.safe_load((FOLDER / "grafana" / "datasource.yml").read_text("utf-8"))["datasources"][0]
    for board in boards():
        taken = {(x, y) for one in board.panels for x in range(one.gridPos.x, one.gridPos.x + one.gridPos.w)
                 for y in range(one.gridPos.y, one.gridPos.y + one.gridPos.h)}  # fmt: skip
        assert len(taken) == sum(one.gridPos.w * one.gridPos.h for one in board.panels), "panels overlap"
        assert max(x for x, _ in taken) < 24
        assert len({one.id for one in board.panels}) == len(board.panels)
        for target in (target for one in board.panels for target in one.targets):
            assert target.datasource == Source("prometheus", source["uid"])


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_has_a_paragraph_in_the_documents(rule: dict[str, Any]) -> None:
    """It says what to look at and what to do."""
    page, _, place = rule["annotations"]["runbook"].partition("#")
    assert place == rule["alert"].lower()
    (paragraph,) = re.findall(
        rf"^#### {rule['alert']}\n\n(.*?)\n\n", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(paragraph) > 80


def test_queries_name_metrics_that_there_are() -> None:
    """A renamed metric would leave an empty panel and a silent alert; the documents list each."""
    code = (ROOT / "producers" / "gateway" / "metrics").glob("*.py")
    known = set(re.findall(r'"(argosy_\w+)"', "".join(path.read_text("utf-8") for path in code)))
    queries = [rule["expr"] for rule in RULES]
    queries += [target.expr for board in boards() for one in board.panels for target in one.targets]
    for query in queries:
        for name in re.findall(r"argosy_\w+", query):
            assert re.sub(r"_(total|bucket|count|sum)$", "", name) in known, query
    listed = (ROOT / "docs" / "operations" / "metrics.md").read_text("utf-8")
    shortened = re.compile(r"argosy_(queue_envelopes|batch_(rows|cached_rows|tokens|padded_tokens))")
    assert [name for name in sorted(known) if name not in listed and not shortened.fullmatch(name)] == []
