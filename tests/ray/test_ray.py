"""The recipe for Ray Data on a local Ray: the same rows as a fleet's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from producers import Client, NewItem
from tests.end_to_end.documents import ROOT, blocks
from workers import settings
from workers.fleet.local import LocalFleet

PACKAGES = os.environ.get("ARGOSY_TEST_RAY", "")

pytestmark = pytest.mark.skipif(not PACKAGES, reason="Ray is in a folder of its own: `make test-ray`")

TEXTS = {"r1": "A fine moving film.", "r2": "Dull from the first minute on."}


@pytest.mark.timeout(600)
def test_the_recipe_gives_the_rows_of_a_fleet(tmp_path: Path, pulled_models: object) -> None:
    recipe = list(blocks(ROOT / "docs" / "recipes" / "ray.md"))
    (program,) = [block for block in recipe if block.file]
    (commands,) = [block for block in recipe if block.language == "sh"]
    assert program.file
    (tmp_path / program.file).write_text(program.text, "utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": f"{ROOT}:{PACKAGES}", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        ["sh", "-e"],
        input=commands.text,
        env=os.environ | own,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "3 results"

    rows = {row["key"]: row for row in pq.read_table(tmp_path / "results").to_pylist()}
    assert (rows["r3"]["state"], rows["r3"]["output"]) == ("failed", None)
    with (
        LocalFleet(settings.load(), tmp_path / "fleet", flower=False) as fleet,
        Client(fleet.broker_url, fleet.store_url) as client,
    ):
        job = client.submit_many("sentiment", [NewItem(text, key=key) for key, text in TEXTS.items()])
        job.wait(timeout_s=120)
        stored = {row.key: row for row in job.results()}
    for key, row in stored.items():
        found = rows[key or ""]
        assert found["state"] == "succeeded"
        for one, other in zip(json.loads(found["output"]), row.output, strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert (found["model"], found["model_revision"]) == (row.model, row.model_revision)
