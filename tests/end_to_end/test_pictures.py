"""Pictures through a whole fleet: drawn, put away, told of in the row, fetched by the client and over HTTP, gone
with their job.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from producers import Client, FileUnavailable, NewItem
from producers.commands.main import main
from producers.wire.blobs import YOUNG_S, BlobSettings
from producers.wire.errors import ConfigurationError
from producers.wire.result_files import ResultFiles, place_of_files
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.processes import fleet_in
from workers import settings
from workers.device.devices import cpu
from workers.fleet.local import LocalFleet
from workers.node.node import Node

SETTINGS = """
[worker]
models = ["pictures", "style"]
tune_at_start = false

[models.pictures.tasks]
picture = { kind = "text-to-image", params = { num_inference_steps = 20, guidance_scale = 3.0 } }
digit = { kind = "unconditional-image-generation", params = { num_inference_steps = 20 } }

[models.style.tasks]
style = "style-transfer"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with fleet_in(tmp_path_factory.mktemp("pictures"), SETTINGS) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def client(fleet: LocalFleet) -> Iterator[Client]:
    with Client(fleet.broker_url, fleet.store_url) as client:
        yield client


@pytest.fixture(scope="module")
def served(fleet: LocalFleet) -> Iterator[Served]:
    with serving(fleet.broker_url, fleet.store_url) as found:
        yield found


def drawn(client: Client, file: dict[str, Any]) -> Any:
    with Image.open(io.BytesIO(client.read_file(file))) as image:
        assert (image.width, image.height) == (file["width"], file["height"])
        return np.asarray(image.convert("L"), dtype=int)


def test_a_picture_is_drawn_kept_and_fetched(client: Client) -> None:
    """What is white is ink: a thick digit has more of it than a thin one, and a seed gives the same picture again."""
    asked = [("a thick handwritten eight", 3), ("a thin handwritten one", 3), ("a thick handwritten eight", 3)]
    inputs = [NewItem(prompt, params={"seed": seed}) for prompt, seed in asked]
    job = client.submit_many("picture", inputs)
    job.wait(timeout_s=120)
    rows = sorted(job.results(), key=lambda row: row.seq)
    thick, thin, again = (drawn(client, row.output["image"]) for row in rows)
    assert thick.mean() > 2 * thin.mean()
    np.testing.assert_allclose(thick, again, atol=1)
    assert [row.output["seed"] for row in rows] == [3, 3, 3]
    file = rows[0].output["image"]
    assert file["media_type"] == "image/png"
    assert hashlib.sha256(client.read_file(file)).hexdigest() == file["sha256"]


def test_a_number_alone_draws_something(client: Client) -> None:
    output = client.submit("digit", 7, priority="interactive").result(timeout_s=60)
    assert output["seed"] == 7
    assert 0.02 < drawn(client, output["image"]).mean() / 255 < 0.5


def test_a_photograph_is_redrawn_and_its_gateway_hands_it_out_to_its_tenant_alone(served: Served) -> None:
    image = io.BytesIO()
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(image, "JPEG")
    headers = {"content-type": "application/json"}
    body = {"task": "style", "input": {"bytes": base64.b64encode(image.getvalue()).decode()}, "wait_s": 60}
    body["params"] = {"style": "mosaic", "format": "webp"}
    with served.client(served.key("ours")) as ours, served.client(served.key("theirs")) as theirs:
        answer = ours.post("/api/items", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["results"]
        assert row["state"] == "succeeded", row["error"]
        file = row["output"]["image"]
        where = "/api/jobs/{}/files/{}".format(*file["uri"].split("/")[-2:])
        found = ours.get(where)
        assert (found.status_code, found.headers["content-type"]) == (200, "image/webp")
        assert hashlib.sha256(found.content).hexdigest() == file["sha256"]
        assert (file["width"], file["height"]) == (60, 40)
        assert found.headers["x-content-type-options"] == "nosniff"
        assert theirs.get(where).status_code == 404
        assert ours.get(where.replace(file["sha256"], "0" * 64)).status_code == 404
        assert ours.get(where.replace(file["sha256"], "..")).status_code in (404, 422)
        with httpx.Client(base_url=served.url) as nobody:
            assert nobody.get(where).status_code == 401


def test_a_purge_takes_the_files_too(fleet: LocalFleet, client: Client) -> None:
    """With the first sweep that finds their job gone, and themselves no longer young."""
    job = client.submit_many("digit", [11])
    job.wait(timeout_s=60)
    [row] = job.results()
    result = CliRunner().invoke(main, ["purge", "--older-than", "0s"])
    assert result.exit_code == 0, result.output
    assert client.read_file(row.output["image"])
    place = place_of_files(BlobSettings(), fleet.store_url)
    later = ResultFiles(place, clock=lambda: time.time() + YOUNG_S + 60)
    with Store(fleet.store_url) as store:
        assert later.sweep(store.retention.existing) >= 1
    with pytest.raises(FileUnavailable):
        client.read_file(row.output["image"])


def test_a_fleet_without_a_place_for_files_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out at the start, and not by the first picture."""
    (tmp_path / "fleet.toml").write_text(SETTINGS, encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(tmp_path / "fleet.toml"))
    node = Node(
        settings.load(),
        cpu(),
        name="n",
        broker_url="redis://localhost:1",
        store_url="postgresql://nobody@localhost/none",
    )
    with pytest.raises(
        ConfigurationError, match=r"task '\w+': blobs: this fleet has no place for results that are files"
    ):
        node.start()
    node.stop()
