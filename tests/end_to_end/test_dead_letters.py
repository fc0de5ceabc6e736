"""An envelope that takes its worker down is given up, and tried again when the operator says so."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path

import pytest

from producers import Client, ItemFailed
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED, Fleets
from workers import settings

TIMEOUT_S = 120


@pytest.mark.timeout(300)
def test_an_input_that_kills_every_worker_is_given_up_and_replayed(
    fleets: Fleets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers die of it, the third buries it and does the rest of the work; mended, a replay brings its result."""
    path = tmp_path / "fleet.toml"
    path.write_text(SCRIPTED.replace("[worker]", "[worker]\nmax_attempts = 2"), encoding="utf-8")
    monkeypatch.setenv("ARGOSY_FLEET", str(path))
    fault = tmp_path / "fault"
    fault.touch()
    fleet = fleets(settings.load())
    watching = threading.Thread(target=fleet.watch)  # starts a worker again that died
    watching.start()
    try:
        with Client(fleet.broker_url, fleet.store_url) as client, Store(fleet.store_url) as store:
            text = f"kill while {fault}"
            poison = client.submit("echo", text)
            with pytest.raises(ItemFailed, match="TooManyAttempts: given up after 2 attempts, the last by argosy-cpu"):
                poison.result(timeout_s=TIMEOUT_S)
            assert client.submit("echo", "harmless").result(timeout_s=TIMEOUT_S)["crc"] == zlib.crc32(b"harmless")
            (letter,) = store.dead_letters.newest()
            assert letter.attempts == 2
            assert text.encode() in letter.payload

            fault.unlink()
            assert store.dead_letters.replay(error_kind="TooManyAttempts").results == 1

            job = client.job(poison.job)
            status = job.wait(timeout_s=TIMEOUT_S)
            assert (status.succeeded, status.failed) == (2, 0)
            crcs = {row.output["crc"] for row in job.results()}
            assert crcs == {zlib.crc32(text.encode()), zlib.crc32(b"harmless")}
    finally:
        fleet.request_stop()
        watching.join()
