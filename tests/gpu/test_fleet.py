"""A fleet on a GPU: its worker is pinned there, and what breaks the GPU costs nobody else's item."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from producers import Client
from workers import settings
from workers.device.devices import Device
from workers.fleet.local import LocalFleet

FLEET = """
[worker]
profile = "gpu"
models = ["faulty"]
lease_s = 5.0
[models.faulty]
class = "tests.gpu.faulty_model:FaultyModel"
source = { path = "tests" }
batch_cost = 32
batch_rows = 32
[models.faulty.tasks.square]
kind = "text-classification"
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, gpu: Device) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "fleet.toml").write_text(FLEET, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARGOSY_FLEET", str(folder / "fleet.toml"))
        with (
            LocalFleet(settings.load(), folder / "home", flower=False) as fleet,
            Client(fleet.broker_url, fleet.store_url) as client,
        ):
            yield client


def squares(client: Client, inputs: list[str]) -> list[object]:
    """Submit numbers and return their squares, or the kind of error in a square's place."""
    job = client.submit_many("square", inputs)
    job.wait(timeout_s=170)
    return [row.output["square"] if row.error is None else row.error["kind"] for row in job.results()]


def test_a_worker_sees_its_gpu_alone(client: Client) -> None:
    job = client.submit_many("square", [f"ok {n}" for n in range(300)])
    assert job.wait(timeout_s=170).succeeded == 300
    assert [row.output for row in job.results()] == [{"square": n * n, "gpus": 1} for n in range(300)]


def test_an_item_that_does_not_fit_fails_alone(client: Client) -> None:
    """Its batch is taken apart until it is found; the process lives on."""
    inputs = [f"ok {n}" for n in range(100)]
    inputs[37] = "overflow 37"
    found = squares(client, inputs)
    assert found[37] == "OutOfMemory"
    assert found[:37] + found[38:] == [n * n for n in range(100) if n != 37]


def test_an_item_that_breaks_the_gpu_for_its_process_fails_alone(client: Client) -> None:
    """After an assertion in a kernel, whatever the process runs fails: without a new one, all items would."""
    inputs = [f"ok {n}" for n in range(100)]
    inputs[61] = "break 61"
    found = squares(client, inputs)
    assert found[61] == "DeviceLost"
    assert found[:61] + found[62:] == [n * n for n in range(100) if n != 61]
    assert squares(client, ["ok 7"]) == [49]
