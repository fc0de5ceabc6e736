"""Audio files of every sort to the samples that a model hears, and what is refused."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from workers.models.speech import waveform
from workers.models.speech.waveform import Samples

RATE = 16_000
AT = np.arange(RATE, dtype=np.float32) / RATE

#: A second of two tones, which every codec keeps.
TONES = np.asarray(0.3 * np.sin(2 * np.pi * 440 * AT) + 0.2 * np.sin(2 * np.pi * 1200 * AT), dtype=np.float32)


def encoded(samples: Any, format_: str = "WAV", subtype: str | None = "PCM_16", rate: int = RATE) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format=format_, subtype=subtype)
    return made.getvalue()


def by_ffmpeg(format_: str, codec: str) -> bytes:
    import av

    made = io.BytesIO()
    with av.open(made, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((TONES[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return made.getvalue()


def heard(data: bytes, max_s: float = 10.0) -> Samples:
    return waveform.decode(data, rate=RATE, max_s=max_s)


def likeness(samples: Samples) -> float:
    """How like the tones are to what was heard: codecs shift them by some samples."""
    spectra = [np.abs(np.fft.rfft(one[:RATE], RATE)) for one in (samples, TONES)]
    return float(spectra[0] @ spectra[1] / np.prod([np.linalg.norm(one) for one in spectra]))


def refusal(data: bytes, max_s: float = 10.0) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        heard(data, max_s)
    return refused.value


@pytest.mark.parametrize(
    ("format_", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 0.01),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4),
        ("WAV", "ULAW", 0.02),
    ],
)
def test_samples_of_every_depth_are_the_same_sound(format_: str, subtype: str, tolerance: float) -> None:
    found = heard(encoded(TONES, format_, subtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TONES, atol=tolerance)


@pytest.mark.parametrize("made", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_codecs_that_lose_something(made: tuple[str, str | None]) -> None:
    found = heard(encoded(TONES, *made))
    assert len(found) == pytest.approx(RATE, rel=0.2)
    assert likeness(found) > 0.98


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="M4A and AAC need the extra `video`")
@pytest.mark.parametrize(("format_", "codec"), [("ipod", "aac"), ("adts", "aac"), ("matroska", "pcm_s16le")])
def test_what_libsndfile_does_not_know_is_read_by_ffmpeg(format_: str, codec: str) -> None:
    assert likeness(heard(by_ffmpeg(format_, codec))) > 0.95  # AAC begins with a moment of silence


@pytest.mark.parametrize("listing", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"])
def test_a_list_of_files_opens_none_of_them(listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever submits could listen to what lies beside the worker."""
    (tmp_path / "secret.m4a").write_bytes(by_ffmpeg("mp4", "aac"))
    monkeypatch.chdir(tmp_path)
    assert "is not an audio file" in str(refusal(listing.format("secret.m4a").encode()))


def test_without_ffmpeg_its_formats_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else found(name))
    assert "argosy[video]" in str(refusal(b"\0\0\0\x20ftypM4A " * 20))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "soxr" else found(name))
    with pytest.raises(ConfigurationError, match=r"pip install 'argosy\[speech\]'"):
        waveform.require()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_brought_to_the_models(rate: int) -> None:
    """The same second, the same tones; block by block or at once."""
    at = np.arange(25 * rate, dtype=np.float32) / rate
    tones = np.asarray(0.3 * np.sin(2 * np.pi * 440 * at) + 0.2 * np.sin(2 * np.pi * 1200 * at), dtype=np.float32)
    found = heard(encoded(tones, subtype="FLOAT", rate=rate), max_s=30)
    assert len(found) == pytest.approx(25 * RATE, abs=2)
    # between the edges: a place where two blocks meet, at 10 s, is as good as any
    here = slice(9 * RATE, 11 * RATE)
    exact = np.arange(25 * RATE) / RATE
    expected = 0.3 * np.sin(2 * np.pi * 440 * exact) + 0.2 * np.sin(2 * np.pi * 1200 * exact)
    np.testing.assert_allclose(found[here], expected[here], atol=0.01)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(channels: int) -> None:
    """Stereo and 5.1: somebody who speaks in one of them is heard."""
    several = np.zeros((RATE, channels), np.float32)
    several[:, -1] = TONES
    np.testing.assert_allclose(heard(encoded(several, subtype="FLOAT")), TONES / channels, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"no recording at all " * 50, "is not an audio file"),
        (encoded(TONES[:0]), "without samples"),
        (encoded(TONES[:0], "OGG", "VORBIS"), "without samples"),
        (encoded(TONES)[:9000], "breaks off after 9,000 of 32,044 bytes"),
        (encoded(TONES, "AIFF")[:9000], "breaks off after"),
        (encoded(TONES, "FLAC")[:5000], "is a broken audio file"),
        (encoded(np.where(AT == 0.5, np.nan, TONES), subtype="FLOAT"), "NaN, infinite or huge"),
        (encoded(TONES * np.float32(1e6), subtype="FLOAT"), "NaN, infinite or huge"),
        (encoded(TONES, rate=999), "999 samples a second"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, problem: str) -> None:
    error = refusal(data)
    assert error.field == "input"
    assert problem in str(error)


def test_a_recording_that_is_recorded_while_it_is_sent_has_no_length_in_its_header() -> None:
    """What ffmpeg writes to a pipe."""
    data = bytearray(encoded(TONES))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_allclose(heard(bytes(data)), TONES, atol=1e-4)


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)])
@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_that_does_not_say_how_long_it_is(tag: bytes, loud_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard to its end, whatever its first frame lets one guess; one that says it and breaks off is refused."""
    parts = [TONES, np.zeros(4 * RATE, np.float32)]
    made = io.BytesIO()
    soundfile.write(made, np.concatenate(parts if loud_first else parts[::-1]), RATE, format="MP3")
    data = made.getvalue()
    first, *frames = data.split(data[:2])[1:]
    assert b"Xing" in first
    untold = tag + b"".join(data[:2] + frame for frame in frames)
    if importlib.util.find_spec("av") is not None:
        assert len(heard(untold)) == pytest.approx(5 * RATE, rel=0.05)
    assert len(heard(tag + data)) == pytest.approx(5 * RATE, rel=0.05)
    assert f"breaks off after {len(tag) + 1000:,} of {len(tag) + len(data):,} bytes" in str(refusal(tag + data[:1000]))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else found(name))
    assert "does not declare its length" in str(refusal(untold))


@pytest.mark.parametrize("made", [("MP3", None), ("OGG", "VORBIS")])
def test_recordings_one_behind_another_are_all_heard(
    made: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a radio's stream is saved, and as files are joined by who knows no better."""
    both = 2 * encoded(TONES, *made)
    if importlib.util.find_spec("av") is not None:
        assert len(heard(both)) == pytest.approx(2 * RATE, rel=0.1)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else found(name))
    for several in (both, 2 * encoded(TONES, "OGG", "OPUS")):
        assert "several recordings, one after another" in str(refusal(several))


def test_an_over_long_recording_is_refused_before_all_of_it_is_decoded() -> None:
    """The limit is named; an hour of silence is a few kilobytes of FLAC."""
    hour = encoded(np.zeros(3600 * 1000, np.int16), "FLAC", rate=1000)
    assert len(hour) < 100_000
    error = refusal(hour, max_s=100)
    assert isinstance(error, InputTooLarge)
    assert "over 100 s" in str(error)
    assert "max_audio_s" in str(error)
