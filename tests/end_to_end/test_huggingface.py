"""A user's own checkpoints, served by a fleet.toml alone: trained here, in folders that nothing in the tree knows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from producers import Client, Pipeline
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput, ItemFailed
from tests import tiny_checkpoints as tiny
from tests.end_to_end.processes import fleet_in
from tests.noise import noise
from workers.fleet.local import LocalFleet

SETTINGS = """
[worker]
models = ["reviews", "reader", "eyes"]
tune_at_start = false

[models.reviews]
source = {{ path = "{folder}/reviews" }}
tasks = {{ review = "text-classification", review-vector = "feature-extraction" }}

[models.reader]
source = {{ path = "{folder}/reader" }}
tasks = {{ answer = "question-answering" }}

[models.eyes]
source = {{ path = "{folder}/eyes" }}
batch_rows = 8

[models.eyes.tasks.things]
kind = "object-detection"
params = {{ threshold = 0.0 }}
"""

GOOD = ["a good film", "it was good", "the team was good and fine", "fine film", "she said it was fine"]
BAD = ["a bad film", "it was bad", "the team was bad and dull", "dull film", "he said it was dull"]


def fine_tuned(folder: Path) -> Path:
    """Train a tiny BERT to tell good from bad, in a second, and save it as transformers does."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tiny.bert(folder, id2label={0: "bad", 1: "good"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = tokenizer(GOOD + BAD, padding=True, return_tensors="pt")
    labels = torch.tensor([1] * len(GOOD) + [0] * len(BAD))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(40):
        optimiser.zero_grad()
        network(**batch, labels=labels).loss.backward()
        optimiser.step()
    network.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints."""
    folder = tmp_path_factory.mktemp("own")
    fine_tuned(folder / "reviews")
    tiny.distilbert(folder / "reader", "DistilBertForQuestionAnswering")
    tiny.yolos(folder / "eyes", num_labels=3)
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    with fleet_in(folder, SETTINGS.format(folder=folder)) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: LocalFleet, folder: Path) -> Iterator[Client]:
    catalogue = Catalogue.from_toml(folder / "fleet.toml")
    with Client(fleet.broker_url, fleet.store_url, catalogue=catalogue) as client:
        yield client


def test_a_fine_tuned_classifier_answers_with_its_own_labels(client: Client) -> None:
    """It was trained on these words; the vectors come from the same pass."""
    job = client.submit_many(["review", "review-vector"], ["the film was fine and good", "a dull and bad cup final"])
    status = job.wait(timeout_s=60)
    assert status.succeeded == 4
    rows = {(row.seq, row.task): row for row in job.results()}
    assert [rows[n, "review"].output[0]["label"] for n in (0, 1)] == ["good", "bad"]
    assert len(rows[0, "review-vector"].vector) == 32 * 4
    assert len({row.batch for row in rows.values()}) == 1


def test_labels_are_explained_beside_others_that_are_not(client: Client) -> None:
    """Half of a job asks why; an urgent item in between does not wait for it, and nobody's label is another for it."""
    texts = ["the film was fine and good", "a dull and bad cup final"] * 8
    explained = client.submit_many("review", texts, params={"explain": True, "explain_steps": 200}, priority="bulk")
    plain = client.submit_many(["review", "review-vector"], texts[:2], priority="bulk")
    assert client.submit("review", "a fine film", priority="interactive").result(timeout_s=60)[0]["label"] == "good"
    assert explained.wait(timeout_s=120).succeeded == len(texts)
    assert plain.wait(timeout_s=60).succeeded == 4
    labels = {row.seq: row.output[0] for row in plain.results() if row.task == "review"}
    for row in explained.results():
        [best] = row.output
        assert best["label"] == labels[row.seq % 2]["label"]
        assert best["score"] == pytest.approx(labels[row.seq % 2]["score"], abs=1e-3)
        why = best["explanation"]
        total = sum(word["contribution"] for word in why["words"])
        assert total == pytest.approx(why["value"] - why["base"] + why["delta"], abs=1e-3)
        assert [word["text"] for word in why["words"]] == texts[row.seq].split()
        weightiest = max(why["words"], key=lambda word: float(word["contribution"]))["text"]
        assert weightiest in {"good": ("fine", "good"), "bad": ("dull", "bad")}[best["label"]]


def test_what_cannot_be_explained_fails_by_its_field_alone(client: Client) -> None:
    """A label that the task has not; the other task of the same item has its vector."""
    params = {"review": {"explain": True, "explain_label": "middling"}}
    handle = client.submit(["review", "review-vector"], "a fine film", params=params)
    with pytest.raises(ItemFailed, match="use one of bad, good"):
        handle.result(timeout_s=60)
    found = {row.task: row for row in handle.results()}
    assert found["review"].error["field"] == "params.review.explain_label"
    assert found["review-vector"].state == "succeeded"


def test_questions_come_as_objects_and_bad_ones_are_refused_at_once(client: Client) -> None:
    """What is missing is named before anything is sent."""
    context = "the young man lives in berlin and she works for apple"
    [best] = client.submit("answer", {"question": "who?", "context": context}).result(timeout_s=60)
    assert context[best["start"] : best["end"]] == best["answer"]
    with pytest.raises(InvalidInput, match="context"):
        client.submit("answer", {"question": "who?"})
    with pytest.raises(InvalidInput, match="question"):
        client.submit("answer", "who?")


def test_a_tasks_own_parameters_are_its_defaults(client: Client) -> None:
    """The settings ask for every box; a submission may ask for fewer."""
    made = io.BytesIO()
    Image.new("RGB", (60, 40), "green").save(made, "PNG")
    boxes = client.submit("things", made.getvalue()).result(timeout_s=60)
    assert len(boxes) == 6
    assert client.submit("things", made.getvalue(), params={"threshold": 1.0}).result(timeout_s=60) == []


@pytest.mark.long
@pytest.mark.usefixtures("fleet")
def test_a_file_of_questions_goes_through_the_command(folder: Path) -> None:
    """With a column for each part, as data sets of questions have them."""
    (folder / "asked.csv").write_text('id,question,context\nq1,who?,"the team, it won"\n', encoding="utf-8")

    def argosy(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "argosy"), *arguments]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "question-answering" in argosy("tasks")
    job = argosy("submit", "asked.csv", "--task", "answer", "--watch").split()[-1]
    [row] = [json.loads(line) for line in argosy("results", job).splitlines()]
    assert row["key"] == "q1"
    assert row["state"] == "succeeded"
    assert row["output"][0]["answer"] in "the team, it won"


def test_things_are_found_cropped_and_looked_at_by_themselves(client: Client) -> None:
    """Image -> boxes -> one image a box -> boxes: as if each crop had been cut here and sent."""
    image = noise(60, 40, 80)
    pipeline = Pipeline().step("things", task="things").step("closer", task="things", of="things")
    job = client.submit_pipeline(pipeline, [png(image)])
    job.wait(timeout_s=60)
    [tree] = job.results()
    [found] = tree.outputs("things")
    closer = {branch.part: branch for branch in tree.of("closer")}
    assert len(closer) == len(found) == 6
    for number, thing in enumerate(found):
        box = thing["box"]
        # an untrained model sees things beyond the edge, and of no size
        corners = (max(box["xmin"], 0), max(box["ymin"], 0), min(box["xmax"], 60), min(box["ymax"], 40))
        branch = closer[number,]
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            assert "empty box" in branch.reason
            continue
        alone = client.submit("things", png(image.crop(corners))).result(timeout_s=60)
        assert [one["box"] for one in branch.output] == [one["box"] for one in alone]
    assert any(branch.state == "succeeded" for branch in closer.values())


def test_a_label_is_a_text_for_the_next_model(client: Client) -> None:
    """Text -> label -> text, through two heads and an other model's question."""
    pipeline = (
        Pipeline()
        .step("review", task="review")
        .step("vector", task="review-vector", of="review")
        .step("answer", task="answer", of="review", take="question", options={"question": "which?"})
    )
    job = client.submit_pipeline(pipeline, ["the film was fine and good", "a dull and bad cup final"])
    job.wait(timeout_s=60)
    for tree, label in zip(job.results(), ("good", "bad"), strict=True):
        assert tree.ok
        alone = client.submit("review-vector", label).result(timeout_s=60)
        assert tree.outputs("vector") == [pytest.approx(alone, abs=1e-5)]
        assert tree.outputs("answer")[0][0]["answer"] == label


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
