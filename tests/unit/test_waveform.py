"""Audio files of every sort to the samples that a model hears, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from tests.media_files import by_ffmpeg, by_libsndfile
from workers.models.speech import waveform
from workers.models.speech.waveform import Samples

RATE = 16_000
AT = np.arange(RATE, dtype=np.float32) / RATE

#: A second of two tones, which every codec keeps.
TONES = np.asarray(0.3 * np.sin(2 * np.pi * 440 * AT) + 0.2 * np.sin(2 * np.pi * 1200 * AT), dtype=np.float32)

encoded = by_libsndfile


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


@pytest.mark.parametrize(("form", "codec"), [("ipod", "aac"), ("adts", "aac"), ("matroska", "pcm_s16le")])
def test_containers_of_ffmpeg(form: str, codec: str) -> None:
    assert likeness(heard(by_ffmpeg(form, codec))) > 0.95  # AAC begins with a moment of silence


@pytest.mark.parametrize(
    ("form", "subtype", "endian"),
    [
        *(("WAV", name, None) for name in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
        *(("WAV", name, "BIG") for name in ("PCM_16", "PCM_24", "FLOAT")),
        *(("WAV", "IMA_ADPCM", None), ("WAV", "GSM610", None), ("WAVEX", "PCM_16", None), ("RF64", "PCM_16", None)),
        *(("W64", "PCM_16", None), ("AIFF", "PCM_16", None), ("AIFF", "PCM_S8", None), ("AU", "PCM_16", None)),
        *(("CAF", "PCM_24", None), ("CAF", "ALAC_16", None), ("FLAC", "PCM_16", None), ("FLAC", "PCM_24", None)),
        *(("NIST", "PCM_16", None), ("VOC", "PCM_16", None)),
    ],
)
def test_libsndfile_reads_the_same_samples(form: str, subtype: str, endian: str | None) -> None:
    """Bit by bit, in stereo where the format has it."""
    samples = TONES if subtype == "GSM610" else np.stack([TONES, TONES / 2], 1)
    data = encoded(samples, form, subtype, endian=endian)
    expected = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].mean(axis=1, dtype=np.float32)
    np.testing.assert_array_equal(heard(data), expected)


@pytest.mark.parametrize("listing", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"])
def test_a_list_of_files_opens_none_of_them(listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever submits could listen to what lies beside the worker."""
    (tmp_path / "secret.m4a").write_bytes(by_ffmpeg("mp4", "aac"))
    monkeypatch.chdir(tmp_path)
    assert "is not an audio file" in str(refusal(listing.format("secret.m4a").encode()))


@pytest.mark.parametrize("missing", ["av", "soxr"])
def test_without_the_libraries_the_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(ConfigurationError, match=rf"audio files need {missing}; pip install 'argosy\[speech\]'"):
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


def sized(file_size: int, samples_size: int, data: bytes = encoded(TONES)) -> bytes:
    """Return a WAV whose header declares other sizes."""
    return data[:4] + struct.pack("<I", file_size) + data[8:40] + struct.pack("<I", samples_size) + data[44:]


HAS = len(encoded(TONES))


@pytest.mark.parametrize(
    "sizes",
    [
        *((HAS - 7, HAS - 44), (HAS, HAS - 44), (HAS + 28, HAS - 8), (HAS - 8, HAS)),  # 1, 8, 36, 44 too many
        *((0x7FFFF024, 0x7FFFF000), (2_000_000_036, 2_000_000_000), (2**30, 2**30), (2**31 - 1, 2**31 - 37)),
        *((0, 0), (36, 0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0xFFFFFFFF), (0xFFFFFFFE, 0xFFFFFFDA)),
    ],
)
def test_a_wav_whose_sizes_lie_is_heard_whole(sizes: tuple[int, int]) -> None:
    """Programs write them into pipes, count their header, or never come back to it."""
    np.testing.assert_array_equal(heard(sized(*sizes)), heard(encoded(TONES)))


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        *(("RF64", {"ds64": (16, 8, "little")}), ("W64", {"data": (16, 8, "little"), "riff": (16, 8, "little")})),
        *(("AIFF", {"SSND": (4, 4, "big"), "FORM": (4, 4, "big")}), ("AU", {".snd": (8, 4, "big")})),
        ("CAF", {"data": (4, 8, "big")}),
    ],
)
@pytest.mark.parametrize("huge", [False, True])
def test_other_sizes_that_lie(form: str, fields: dict[str, tuple[int, int, Any]], huge: bool) -> None:
    whole = encoded(TONES, form)
    data = bytearray(whole)
    for name, (at, length, order) in fields.items():
        place = data.index(name.encode()) + at
        data[place : place + length] = ((2 ** (8 * length) - 1) * huge).to_bytes(length, order)
    np.testing.assert_array_equal(heard(bytes(data))[: len(TONES)], heard(whole))


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        *(("wav", "pcm_s16le", {}), ("wav", "pcm_s16le", {"rf64": "always"}), ("w64", "pcm_s16le", {})),
        *(("aiff", "pcm_s16be", {}), ("au", "pcm_s16be", {}), ("caf", "pcm_s16be", {}), ("flac", "flac", {})),
        *(("ogg", "flac", {}), ("matroska", "pcm_s16le", {}), ("avi", "pcm_s16le", {}), ("wv", "wavpack", {})),
        ("mov", "alac", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_a_recording_out_of_a_pipe_is_heard_whole(form: str, codec: str, options: dict[str, str]) -> None:
    """Its writer could not go back to put its length in front."""
    found = heard(by_ffmpeg(form, codec, TONES, piped=True, options=options))
    np.testing.assert_allclose(found, TONES, atol=0.01)  # WavPack takes 8 bits here


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        *(
            ("wav", "pcm_s16le"),
            ("wav", "libmp3lame"),
            ("w64", "pcm_s16le"),
            ("aiff", "pcm_s16be"),
            ("au", "pcm_s16be"),
        ),
        *(("caf", "pcm_s16be"), ("flac", "flac"), ("ogg", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame")),
        *(("matroska", "libopus"), ("webm", "libopus"), ("avi", "pcm_s16le"), ("wv", "wavpack"), ("tta", "tta")),
    ],
)
def test_a_recording_that_tells_its_length_is_refused_if_it_breaks_off(form: str, codec: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
    data = by_ffmpeg(form, codec, noise)
    assert len(heard(data)) >= len(noise)
    for kept in (len(data) // 2, len(data) * 9 // 10):
        assert any(problem in str(refusal(data[:kept])) for problem in ("breaks off", "a part cannot be decoded"))


def test_an_m4a_that_breaks_off_before_its_index_is_refused() -> None:
    data = by_ffmpeg("ipod", "aac")
    assert "breaks off before its index" in str(refusal(data[: len(data) * 2 // 3]))


def test_fragments_that_break_off_are_refused() -> None:
    data = by_ffmpeg("mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"})
    assert "breaks off after" in str(refusal(data[: len(data) * 2 // 3]))


def test_a_wav_with_a_chunk_behind_is_heard_to_the_end_of_its_samples_only() -> None:
    """Whatever follows the samples is no sound."""
    data = encoded(TONES) + b"LIST" + struct.pack("<I", 4000) + bytes(range(250)) * 16
    np.testing.assert_array_equal(heard(data), heard(encoded(TONES)))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3"])
def test_tags_in_front_of_a_recording(form: str) -> None:
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    data = encoded(TONES, form, None)
    np.testing.assert_array_equal(heard(tag + tag + data), heard(data))


def test_tags_in_other_encodings_cost_nothing() -> None:
    """Latin-1, as programs on Windows write it."""
    text = "künstler".encode("latin-1") + b"\0\0"
    info = b"INFOIART" + struct.pack("<I", len(text)) + text
    data = encoded(TONES) + b"LIST" + struct.pack("<I", len(info)) + info
    np.testing.assert_array_equal(heard(data), heard(encoded(TONES)))


def test_a_wav_that_holds_mp3() -> None:
    """As call recorders write it. The fact chunk counts the encoder's delay."""
    data = by_ffmpeg("wav", "libmp3lame")
    assert likeness(heard(data)) > 0.95
    assert len(heard(data)) == pytest.approx(RATE, rel=0.1)


@pytest.mark.parametrize(
    ("form", "subtype", "name"),
    [
        ("WAV", "G721_32", "a WAV in G.721"),
        *(("WAV", f"NMS_ADPCM_{kbits}", "a WAV in NMS ADPCM") for kbits in (16, 24, 32)),
        *(("AU", subtype, "AU in G.721 or G.723") for subtype in ("G721_32", "G723_24", "G723_40")),
    ],
)
def test_codecs_that_are_taken_for_others_are_refused_by_name(form: str, subtype: str, name: str) -> None:
    """FFmpeg makes noise of them: it takes the number of G.721 for G.726's, and that of NMS for AMR's."""
    assert f"is {name}, which is not read" in str(refusal(encoded(TONES, form, subtype)))


def test_amr_in_wav() -> None:
    assert len(heard(by_ffmpeg("wav", "libopencore_amrnb", rate=8_000))) == pytest.approx(RATE, rel=0.1)


@pytest.mark.parametrize(
    "tag", [b"", b"ID3\x04\0\0\0\0\x02\x01" + bytes(257), b"ID3\x04\0\0\0\x06\x0d\x20" + bytes(100_000)]
)
@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_that_does_not_say_how_long_it_is(tag: bytes, loud_first: bool) -> None:
    """It is heard to its end, whatever its first frame lets one guess; one that says it and breaks off is refused."""
    parts = [TONES, np.zeros(4 * RATE, np.float32)]
    made = io.BytesIO()
    soundfile.write(made, np.concatenate(parts if loud_first else parts[::-1]), RATE, format="MP3")
    data = made.getvalue()
    first, *frames = data.split(data[:2])[1:]
    assert b"Xing" in first
    untold = tag + b"".join(data[:2] + frame for frame in frames)
    assert len(heard(untold)) == pytest.approx(5 * RATE, rel=0.05)
    assert len(heard(tag + data)) == 5 * RATE
    assert "breaks off or has gaps" in str(refusal(tag + data[:1000]))


@pytest.mark.parametrize(
    "made", [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")], ids=lambda made: made[0]
)
def test_recordings_one_behind_another_are_all_heard(made: tuple[str, str | None]) -> None:
    """As a radio's stream is saved, and as files are joined by who knows no better."""
    assert len(heard(2 * encoded(TONES, *made))) == pytest.approx(2 * RATE, rel=0.1)


def test_joined_mp3s_with_tags_are_all_heard() -> None:
    """FFmpeg cannot decode a tag, which costs nothing."""
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    one = tag + encoded(TONES, "MP3", None) + b"TAG".ljust(128)
    assert len(heard(3 * one)) == pytest.approx(3 * RATE, rel=0.1)


def test_recordings_of_different_rates_one_behind_another() -> None:
    second = np.asarray(TONES[::2], np.float32)
    found = heard(encoded(TONES, "OGG", "VORBIS") + encoded(second, "OGG", "VORBIS", rate=RATE // 2))
    assert likeness(found[:RATE]) > 0.98
    assert likeness(found[-RATE:]) > 0.98


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_damage_within_an_ogg_file_is_refused(subtype: str) -> None:
    """FFmpeg passes over a page that is not whole; its samples are missing."""
    data = bytearray(encoded(np.tile(TONES, 5), "OGG", subtype))
    for at in range(50):
        data[len(data) // 2 + 7 * at] ^= 0x5A
    assert "has gaps" in str(refusal(bytes(data)))


def test_an_over_long_recording_is_refused_before_all_of_it_is_decoded() -> None:
    """The limit is named; an hour of silence is a few kilobytes of FLAC."""
    hour = encoded(np.zeros(3600 * 1000, np.int16), "FLAC", rate=1000)
    assert len(hour) < 100_000
    error = refusal(hour, max_s=100)
    assert isinstance(error, InputTooLarge)
    assert "over 100 s" in str(error)
    assert "max_audio_s" in str(error)
