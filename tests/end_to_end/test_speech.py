"""Recordings through a fleet: the built-in model on a novel read aloud, and the ways that lead to it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from openai.types.audio import TranscriptionVerbose

from producers import Client, ItemFailed
from producers.wire.catalogue import Catalogue
from tests import tiny_checkpoints as tiny
from tests.end_to_end.gateway_server import serving
from tests.end_to_end.processes import fleet_in
from workers.fleet.local import LocalFleet
from workers.models.speech.voice import Samples
from workers.training import word_errors

RECORDINGS = Path(__file__).parents[1] / "data" / "speech"
RATE = 16_000

FLEET = """
[worker]
models = ["speech", "ears"]

[models.speech.tasks.transcript]
kind = "automatic-speech-recognition"

[models.ears]
source = {{ path = "{folder}/ears" }}
tasks = {{ noted = "automatic-speech-recognition" }}
options = {{ max_new_tokens = 20 }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pulled_speech: object) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    tiny.whisper(folder / "ears")
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    with fleet_in(folder, FLEET.format(folder=folder)) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: LocalFleet, folder: Path) -> Iterator[Client]:
    catalogue = Catalogue.from_toml(folder / "fleet.toml")
    with Client(fleet.broker_url, fleet.store_url, catalogue=catalogue) as client:
        yield client


def said() -> dict[str, str]:
    """What is read in each recording, by file name."""
    lines = (RECORDINGS / "transcripts.txt").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def sound(name: str) -> Samples:
    found: Samples = soundfile.read(RECORDINGS / name, dtype="float32")[0]
    return found


def encoded(samples: Samples) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, RATE, format="FLAC")
    return made.getvalue()


@pytest.mark.long
@pytest.mark.usefixtures("fleet")
def test_a_folder_of_recordings_is_written_down(folder: Path) -> None:
    """By the command, with at most one word in twenty wrong."""
    command = [str(Path(sys.executable).parent / "argosy"), "submit", str(RECORDINGS), "--task", "transcript"]
    command += ["--output", "written.jsonl"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (folder / "written.jsonl").read_text("utf-8").splitlines()]
    written = {Path(row["path"]).name: row["transcript"]["text"] for row in rows}
    assert written.keys() == said().keys()
    assert word_errors.rate([(text, written[name]) for name, text in said().items()]) <= 0.05


@pytest.mark.long
def test_a_long_recording_is_cut_where_nobody_speaks(client: Client) -> None:
    """All five, with pauses of two seconds in which the wind blows: each is found where it is, and the wind says
    nothing.
    """
    wind = np.random.default_rng(0).normal(size=2 * RATE).astype(np.float32) * 0.003
    parts = [sound(name) for name in said()]
    whole = encoded(np.concatenate([piece for part in parts for piece in (wind, part)]))
    handles = [
        client.submit("transcript", whole, params={"return_timestamps": True}),
        client.submit("transcript", encoded(np.tile(wind, 3))),
        client.submit("transcript", encoded(np.zeros(RATE, np.float32))),
    ]
    heard, *nothing = [handle.result(timeout_s=120) for handle in handles]
    assert nothing == [{"text": ""}, {"text": ""}]
    assert word_errors.rate([(" ".join(said().values()), heard["text"])]) <= 0.1
    times = [time for chunk in heard["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    begins_s = np.cumsum([2, *(len(part) / RATE + 2 for part in parts)])[:-1]
    starts = [chunk["timestamp"][0] for chunk in heard["chunks"]]
    for begin_s in begins_s:
        assert min(abs(start - begin_s) for start in starts) < 1.0
    assert all(after >= before for before, after in pairwise(starts))


def test_what_is_no_recording_fails_by_name(client: Client) -> None:
    """Found out by the worker, which reads it; its neighbours succeed."""
    good, bad = encoded(sound("austen-0930.flac")[:RATE]), b"no recording"
    handles = [client.submit("noted", one) for one in (good, bad, good[:9000])]
    assert handles[0].result(timeout_s=60)["text"]
    for handle, problem in zip(handles[1:], ("not an audio file", "broken audio file"), strict=True):
        with pytest.raises(ItemFailed, match=problem):
            handle.result(timeout_s=60)


def test_openais_package_gets_transcriptions(fleet: LocalFleet) -> None:
    """Unmodified, in every form; the times of subtitles are those of the segments."""
    clip = (RECORDINGS / "austen-0880.flac").read_bytes()
    with (
        serving(fleet.broker_url, fleet.store_url) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key("ours"), max_retries=0) as client,
    ):
        ask = client.audio.transcriptions.create
        heard = ask(model="speech", file=("clip.flac", clip), language="en")
        assert word_errors.rate([("he was not an ill disposed young man", heard.text)]) <= 0.3
        short = ("clip.wav", encoded(sound("austen-0930.flac")[: 2 * RATE]))
        plain = ask(model="noted", file=short, response_format="text")
        verbose = ask(
            model="noted", file=short, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        assert plain.strip()
        assert verbose.words
        assert verbose.segments is not None
        TranscriptionVerbose.model_validate(verbose.model_dump(exclude={"task"}), strict=True)
        assert (verbose.language, verbose.duration, verbose.usage and verbose.usage.seconds) == ("english", 2.0, 2.0)
        silent = ask(
            model="noted", file=("silent.wav", encoded(np.zeros(RATE, np.float32))), response_format="verbose_json"
        )
        assert (silent.text, silent.duration, silent.segments, silent.language) == ("", 1.0, [], "unknown")
        events = list(ask(model="noted", file=short, stream=True))
        assert [one.type for one in events] == ["transcript.text.delta", "transcript.text.done"]
        assert events[-1].to_dict()["text"] == plain.strip()
        refused: dict[str, Any] = {
            "prompt": "Jane", "temperature": 0.5, "include": ["logprobs"], "known_speaker_names": ["a"],
            "timestamp_granularities": ["word"], "extra_body": {"beam_size": 5},
        }  # fmt: skip
        for name, value in refused.items():
            with pytest.raises(openai.BadRequestError) as error:
                ask(model="noted", file=short, **{name: value})
            assert str(error.value.param).removesuffix("[]") in (name, "beam_size")
        srt = ask(model="noted", file=short, response_format="srt")
        vtt = ask(model="noted", file=short, response_format="vtt")
        assert srt.count("-->") == vtt.count("-->") == len(verbose.segments) > 0
        assert vtt.startswith("WEBVTT")
        with pytest.raises(openai.BadRequestError, match="multilingual"):
            ask(model="speech", file=("clip.flac", clip), language="fr")
        with pytest.raises(openai.BadRequestError, match="not an audio file"):
            ask(model="speech", file=("clip.flac", b"no recording"))
        assert {model.id for model in client.models.list()} >= {"transcript", "noted"}
