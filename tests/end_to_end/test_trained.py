"""A user's session: a CSV, `argosy train`, a fleet that serves the folder, and a second training put into service under
load.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from producers import Client
from producers.commands.main import main
from tests import tiny_checkpoints
from tests.end_to_end.processes import fleet_in, until

pytestmark = pytest.mark.training

RECIPE = """
[train]
backbone = {{ path = "encoder" }}
out = "{out}"
name = "reviews"
steps = {steps}
rows = 16
rate = 1e-3
patience = 20
[data]
train = "reviews.csv"
[tasks.tone]
kind = "classification"
label = "tone"
[tasks.stars]
kind = "regression"
label = "stars"
fusion = ["tone"]
"""

FILLING = ("the", "a", "film", "was", "said", "it", "of", "team", "year")


def write_rows(path: Path, count: int) -> None:
    random = Random(2)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "tone", "stars"])
        for _ in range(count):
            tone = random.choice(("good", "bad"))
            words = [*random.choices(FILLING, k=random.randint(3, 8)), random.choice(("fine", tone))]
            random.shuffle(words)
            known = tone if tone in words else ""
            writer.writerow([" ".join(words), known, 4 if tone == "good" else 1])


def argosy(*words: str) -> str:
    ran = CliRunner().invoke(main, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_from_rows_to_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No item is lost, and each is answered wholly by one training."""
    tiny_checkpoints.bert(tmp_path / "encoder", "BertModel")
    write_rows(tmp_path / "reviews.csv", 500)
    for out, steps in (("first", 5), ("second", 150)):
        (tmp_path / f"{out}.toml").write_text(RECIPE.format(out=out, steps=steps), encoding="utf-8")
        said = argosy("train", str(tmp_path / f"{out}.toml"))
        assert f"ARGOSY_FLEET={tmp_path / out / 'fleet.toml'}" in said.replace("\n", "")
    monkeypatch.setenv("ARGOSY_FLEET", str(tmp_path / "first" / "fleet.toml"))
    expected = [f"the film was {('bad', 'good')[n % 2]} {n}" for n in range(400)]
    text = (tmp_path / "first" / "fleet.toml").read_text(encoding="utf-8")
    with fleet_in(tmp_path / "first", text) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        jobs = [client.submit_many(["tone", "stars"], expected)]
        until(lambda: jobs[0].progress().done)
        said = argosy("models", "reload", "reviews", "--config", str(tmp_path / "second" / "fleet.toml"))
        assert "backbone@" in said
        jobs.append(client.submit_many(["tone", "stars"], expected))
        for job in jobs:
            status = job.wait(timeout_s=90)
            assert (status.succeeded, status.total) == (800, 800)
        rows = list(jobs[1].results())
        assert len({row.model_revision for row in rows}) == 1
        by_item = Counter(row.seq for row in rows)
        assert set(by_item.values()) == {2}
        tones = {row.seq: row.output[0]["label"] for row in rows if row.task == "tone"}
        assert sum(tone == ("bad", "good")[seq % 2] for seq, tone in tones.items()) > 380
        explained = client.submit("tone", "the film was bad", params={"explain": True}).result(timeout_s=90)
        words = explained[0]["explanation"]["words"]
        assert max(words, key=lambda word: word["contribution"])["text"] == "bad"
