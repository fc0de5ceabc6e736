"""Large inputs travel by reference: put away, read below one URL only, and gone with their job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import msgspec
import pytest
from click.testing import CliRunner

from producers.client.client import Client
from producers.commands.main import main
from producers.wire.blobs import YOUNG_S, Blobs, BlobSettings
from producers.wire.errors import BlobsUnavailable, ConfigurationError, InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.messages import BlobInput, InlineBytes, new_id
from results_store.store import Store
from tests.integration.stand_in import StandIn
from workers import settings
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import carried, read

LONG, SHORT = "a long text " * 20, "short"


@pytest.fixture(params=["file", "memory"])
def blob_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that producers and workers share, and what an object store's client looks like."""
    if request.param == "file":
        yield f"file://{tmp_path}/blobs"
        return
    yield "memory://bucket/blobs"
    fs = fsspec.filesystem("memory")
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


@pytest.fixture
def blobs(blob_url: str) -> Blobs:
    return Blobs(BlobSettings(url=blob_url, inline_bytes=100))


@pytest.fixture
def fleet_toml(tmp_path: Path, blob_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(f'[blobs]\nurl = "{blob_url}"\ninline_bytes = 100\n')
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    return path


@pytest.fixture
def sqlite_only(sqlite_url: str) -> Iterator[Store]:
    store = Store(sqlite_url)
    store.migrate()
    with store:
        yield store


def files(blob_url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(blob_url)
    return sorted(fs.find(root))


def test_what_is_put_away_comes_back(blobs: Blobs) -> None:
    """Texts as texts, bytes as bytes, of any size up to the worker's limit."""
    job = new_id()
    for value in ("naïve " * 50, InlineBytes(b"\xff\x00" * 100)):
        reference = blobs.put(value, job)
        assert blobs.get(reference, 1000) == value
        with pytest.raises(InputTooLarge, match="has over 10 bytes"):
            blobs.get(reference, 10)


@pytest.mark.usefixtures("fleet_toml")
def test_only_large_inputs_travel_by_reference(
    broker_url: str, sqlite_only: Store, sqlite_url: str, blob_url: str
) -> None:
    """Client and worker agree by the same file; a worker reads what came as if it had come along."""
    stand_in = StandIn(broker_url, sqlite_only)
    with Client(broker_url, sqlite_url) as client:
        client.submit_many("topic", [SHORT, LONG])
        client.submit_many("image-classification", [b"x" * 500])
        client.submit("topic", LONG)
    (short, by_reference), (lone,) = (envelope.items for envelope in reversed(stand_in.waiting()))
    assert short.input == SHORT
    limits = InputLimits(blobs=Blobs(settings.load().blobs))
    for item in (by_reference, lone):
        assert isinstance(item.input, BlobInput)
        assert carried(item.input, limits) == read(item.input, limits) == LONG
    assert len(files(blob_url)) == 3


def test_a_reference_leads_nowhere_but_below_the_url(blobs: Blobs, tmp_path: Path) -> None:
    """Messages are written by strangers."""
    (tmp_path / "secret").write_text("secret")
    for job, blob in (("..", "secret"), (new_id(), "../../secret"), (new_id(), "/etc/passwd"), ("", new_id())):
        with pytest.raises(InvalidInput, match="blob reference with invalid names"):
            blobs.get(BlobInput(job, blob, text=True), 1000)
    with pytest.raises(InputUnavailable, match="is no longer in blob storage; submit it again"):
        blobs.get(BlobInput(new_id(), new_id(), text=True), 1000)
    with pytest.raises(InvalidInput, match=r"this worker has no \[blobs\] url; set the producers'"):
        carried(BlobInput(new_id(), new_id(), text=True), InputLimits())


def test_nobody_can_submit_a_reference(broker_url: str, sqlite_only: Store, sqlite_url: str) -> None:
    """Another job's inputs are not to be had that way."""
    with Client(broker_url, sqlite_url) as client:
        for task in ("topic", "image-classification"):
            with pytest.raises(InvalidInput, match="must be"):
                client.submit(task, BlobInput(new_id(), new_id(), text=True))


@pytest.mark.usefixtures("fleet_toml")
def test_blobs_go_with_their_jobs_inputs(
    broker_url: str, sqlite_only: Store, sqlite_url: str, blob_url: str, blobs: Blobs
) -> None:
    """Not before; and what a submission left behind that was never accepted goes too, but not while it is young."""
    with Client(broker_url, sqlite_url) as client:
        done = client.submit_many("topic", [LONG])
        client.submit_many("topic", [LONG])
        stand_in = StandIn(broker_url, sqlite_only)
        stand_in.work(1)
        assert done.progress().finished
    abandoned = blobs.put(LONG, new_id())
    later = Blobs(blobs.settings, clock=lambda: time.time() + YOUNG_S + 1)
    assert blobs.sweep(sqlite_only.retention.with_inputs) == 0
    assert later.sweep(sqlite_only.retention.with_inputs) == 1
    with pytest.raises(InputUnavailable):
        blobs.get(abandoned, 1000)
    assert len(files(blob_url)) == 2
    sqlite_only.retention.purge(finished_before=time.time() + 1, keep_results=True)
    assert later.sweep(sqlite_only.retention.with_inputs) == 1
    assert later.sweep(lambda jobs: jobs) == 0
    assert len(files(blob_url)) == 1, "that of the unfinished job"


@pytest.mark.usefixtures("fleet_toml")
def test_the_operators_purge_sweeps_as_well(
    broker_url: str, sqlite_only: Store, sqlite_url: str, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blobs that are old enough; these were made in 2004 by their names."""
    monkeypatch.setenv("ARGOSY_BROKER_URL", broker_url)
    monkeypatch.setenv("ARGOSY_STORE_URL", sqlite_url)
    old = f"00{new_id()[2:]}"
    fs, root = fsspec.core.url_to_fs(blobs.settings.url)
    fs.makedirs(f"{root}/{old}")
    fs.pipe_file(f"{root}/{old}/{old}", b"old")
    result = CliRunner().invoke(main, ["purge", "--older-than", "30d"])
    assert result.exit_code == 0, result.output
    assert "1 inputs" in result.stdout


def test_a_place_that_cannot_be_written_refuses_the_submission(
    broker_url: str, sqlite_only: Store, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is accepted whose input is nowhere; small items go on."""
    (tmp_path / "blobs").write_text("no folder")
    monkeypatch.setenv("ARGOSY_BLOB_URL", f"file://{tmp_path}/blobs")
    with Client(broker_url, sqlite_url) as client:
        client.submit("topic", SHORT)
        with pytest.raises(BlobsUnavailable, match=r"check that \[blobs\] url can be reached and written"):
            client.submit_many("image-classification", [b"x" * 2_000_000])
    assert len(StandIn(broker_url, sqlite_only).waiting()) == 1
    monkeypatch.setenv("ARGOSY_BLOB_URL", "nowhere://blobs")
    with Client(broker_url, sqlite_url) as client, pytest.raises(ConfigurationError, match=r"blobs: .*nowhere"):
        client.submit_many("image-classification", [b"x" * 2_000_000])


def test_worker_and_client_find_the_same_place(tmp_path: Path, blob_url: str) -> None:
    """The environment goes before the file, on both sides; a wrong setting is named."""
    path = tmp_path / "fleet.toml"
    path.write_text(f'[blobs]\nurl = "{blob_url}"\n')
    assert settings.load(path, environment={}).blobs.url == blob_url
    assert settings.load(path, environment={"ARGOSY_BLOB_URL": "memory://x"}).blobs.url == "memory://x"
    path.write_text("[blobs]\ninline_bytes = -1\n")
    with pytest.raises(ConfigurationError, match=r"blobs: .inline_bytes. must be 0 or more"):
        settings.load(path, environment={})


def test_an_envelope_with_references_is_json() -> None:
    """References are text: such an envelope stays readable in Flower and in SQL."""
    reference = BlobInput(new_id(), new_id(), text=True)
    assert json.loads(msgspec.json.encode(reference))["type"] == "blob"
