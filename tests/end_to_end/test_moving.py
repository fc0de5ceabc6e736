"""Videos and sensors through a whole fleet: by bytes, by path, out of folders and files, in the database."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers import Client
from producers.wire.catalogue import Catalogue
from producers.wire.errors import InvalidInput, ItemFailed
from tests import videos
from tests.end_to_end.processes import fleet_in
from workers import settings
from workers.fleet.local import LocalFleet
from workers.models.sources import model_source
from workers.training import train_series, train_tabular

SETTINGS = """
[worker]
models = ["video", "motion", "customers"]
tune_at_start = false

[limits]
allowed_roots = ["{folder}"]

[models.video.tasks]
camera-motion = "video-classification"
video-embedding = "video-feature-extraction"

[models.motion.tasks]
motion = "time-series-classification"

[models.customers]
class = "tabular"
source = {{ path = "{folder}/customers" }}
tasks = {{ churn = "tabular-classification" }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pulled_models: object) -> Path:
    """With a folder of videos of which one is none."""
    folder = tmp_path_factory.mktemp("moving")
    source = model_source.parse(settings.load(environment={}).models["video"].source, where="models.video.source")
    model_source.pull(source, model_source.cache_folder())
    lines = [f"{number},{number % 40},{'yes' if number % 40 > 20 else 'no'}" for number in range(200)]
    (folder / "customers.csv").write_text("\n".join(["id,age,churn", *lines]), encoding="utf-8")
    known = train_tabular.read_csv(folder / "customers.csv", "churn", drop=["id"])
    train_tabular.train(known, folder / "customers")
    (folder / "clips").mkdir()
    for number in range(3):
        (folder / "clips" / f"{number}.mp4").write_bytes(videos.file(videos.moving(20, 64, 48, number)))
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    (folder / "clips" / "notes.txt").write_text("no clip", encoding="utf-8")
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


def test_a_video_by_its_bytes_and_by_its_path(client: Client, folder: Path) -> None:
    """Two tasks of one pass; the same answer whether the file travels or lies where the worker reads it."""
    path = folder / "clips" / "0.mp4"
    tasks = ["camera-motion", "video-embedding"]
    handles = [client.submit(tasks, given) for given in (path.read_bytes(), path)]
    for handle in handles:
        handle.result(timeout_s=120)
    sent, named = ({row.task: row for row in handle.results()} for handle in handles)
    assert len(sent["video-embedding"].vector or b"") == 4 * 1280
    assert sent["camera-motion"].output == named["camera-motion"].output
    assert sent["camera-motion"].batch == sent["video-embedding"].batch
    with pytest.raises(ItemFailed, match="not a complete, readable video"):
        client.submit("camera-motion", b"no video").result(timeout_s=60)


def argosy(folder: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "argosy"), *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.stdout


@pytest.mark.long
@pytest.mark.usefixtures("fleet")
def test_tables_go_through_the_command(folder: Path) -> None:
    """The columns are the models', which workers put into the store: the command knows no model."""
    argosy(folder, "submit", "customers.csv", "--task", "churn", "--output", "rated.csv")
    with (folder / "rated.csv").open(encoding="utf-8", newline="") as file:
        rated = list(csv.DictReader(file))
    assert len(rated) == 200
    # `churn` is the table's own column, so the task's gets another name
    found = [
        json.loads(next(row[name] for name in row if name.startswith("churn") and name != "churn")) for row in rated
    ]
    right = sum(one[0]["label"] == row["churn"] for one, row in zip(found, rated, strict=True))
    assert right > 180
    recordings = train_series.basic_motions(model_source.cache_folder()).held_out[::8]
    lines = [",".join(["id", *train_series.WATCH])]
    for number, (values, _) in enumerate(recordings):
        lines += [",".join(map(str, [number, *step])) for step in values.tolist()]
    (folder / "steps.csv").write_text("\n".join(lines), encoding="utf-8")
    job = argosy(folder, "submit", "steps.csv", "--task", "motion", "--watch").split()[-1]
    best = {
        row["key"]: row["output"][0]["label"] for row in map(json.loads, argosy(folder, "results", job).splitlines())
    }
    assert best == {str(number): label for number, (_, label) in enumerate(recordings)}


@pytest.mark.long
@pytest.mark.usefixtures("fleet")
def test_a_folder_of_videos_goes_through_the_command(folder: Path) -> None:
    """Its videos and nothing else; the broken one fails alone."""
    job = argosy(folder, "submit", "clips/", "--task", "camera-motion", "--watch").split()[-1]
    rows = {row["key"]: row for row in map(json.loads, argosy(folder, "results", job).splitlines())}
    assert {key: row["state"] for key, row in rows.items()} == {
        "0.mp4": "succeeded",
        "1.mp4": "succeeded",
        "2.mp4": "succeeded",
        "broken.mp4": "failed",
    }
    assert rows["broken.mp4"]["error"]["kind"] == "InvalidInput"
    assert {key: row["precision"] for key, row in rows.items()} == {
        "0.mp4": "fp32",
        "1.mp4": "fp32",
        "2.mp4": "fp32",
        "broken.mp4": None,
    }


def test_series_by_channels_and_by_name(client: Client) -> None:
    """As lists, and as an object of them; what is wrong is known before anything is sent."""
    recordings = train_series.basic_motions(model_source.cache_folder()).held_out[::8]
    inputs = [values.T.tolist() for values, _ in recordings]
    inputs[0] = dict(zip(train_series.WATCH, inputs[0], strict=True))
    job = client.submit_many("motion", inputs)
    assert job.wait(timeout_s=60).succeeded == len(inputs)
    best = {row.seq: row.output[0]["label"] for row in job.results()}
    assert [best[seq] for seq in range(len(inputs))] == [label for _, label in recordings]
    with pytest.raises(InvalidInput, match=r"\.1: has 2 values, and channel 0 has 3"):
        client.submit("motion", [[1, 2, 3], [1, 2]])
