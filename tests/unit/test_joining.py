"""Results beside the rows of their source: what is missing says so, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from producers.client.request import Request
from producers.joining import write_joined
from producers.sources import Source
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput
from results_store.records import Result, ResultState

CATALOGUE = Catalogue({}).with_models({"m": {"tasks": {"topic": "text-classification"}}}, where="fleet.toml")
REQUEST = Request.check(CATALOGUE, "topic", priority="bulk")


def result(seq: int, key: str, **changes: object) -> Result:
    given = {"job": "job", "task": "topic", "envelope": "e", "state": ResultState.SUCCEEDED, "output": key.upper()}
    return Result(**{"seq": seq, "key": key, **given, **changes})  # type: ignore[arg-type]


def joined(folder: Path, rows: list[dict[str, object]], results: list[Result]) -> list[dict[str, object]]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_joined(Source(source, "text"), REQUEST, results, folder / "out.jsonl") == len(rows)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_source_that_is_longer_than_its_job_says_so_in_each_further_row(tmp_path: Path) -> None:
    """Rows that were never submitted must not look complete, nor rows that were refused."""
    rows = [{"id": key, "text": text} for key, text in (("a", "one"), ("b", ""), ("c", "three"), ("d", "four"))]
    error = {"kind": "ModelError", "message": "broke"}
    results = [result(0, "a"), result(2, "c", state=ResultState.FAILED, output=None, error=error)]
    found = joined(tmp_path, rows, results)
    assert [(row["id"], row["topic"]) for row in found] == [("a", "A"), ("b", None), ("c", None), ("d", None)]
    assert found[0]["error"] is None
    assert "empty" in str(found[1]["error"])
    assert found[2]["error"] == "topic: ModelError: broke"
    assert found[3]["error"] == "no result; was this row submitted?"


def test_a_source_that_has_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="changed since its submission"):
        joined(tmp_path, [{"id": "b", "text": "one"}], [result(0, "a")])
    with pytest.raises(InvalidInput, match="ends before row 1"):
        joined(tmp_path, [{"id": "a", "text": "one"}], [result(0, "a"), result(1, "b")])
