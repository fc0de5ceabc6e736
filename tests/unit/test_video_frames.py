"""Frames out of video files: exactly those that were asked for, and no more work for them than is allowed."""

from __future__ import annotations

import gc
import io
import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from tests import videos
from workers.models.interface import options
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling
from workers.models.video.frames import VideoLimits

WIDE = VideoLimits()
MOVING = videos.moving()
FILE = videos.file(MOVING)


def read(data: bytes, sampling: FrameSampling, limits: VideoLimits = WIDE) -> list[Any]:
    return frames.read(data, sampling, limits, lambda frame: frame.to_ndarray(format="rgb24"))


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("mp4", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "libx264"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),
        ("mpeg", "mpeg1video"),
        ("gif", "gif"),
        ("apng", "apng"),
    ],
)
def test_the_wanted_frames_are_read(form: str, codec: str) -> None:
    """The very pixels that decoding all of the file gives, though only a part is decoded; short videos repeat
    frames.
    """
    data = videos.file(MOVING, form, codec)
    whole = videos.plain(data)
    assert len(whole) == len(MOVING)
    for sampling in (
        FrameSampling(8),
        FrameSampling(8, 2),
        FrameSampling(3, 1),
        FrameSampling(1, 4),
        FrameSampling(50),
        FrameSampling(8, 9),
    ):
        for found, place in zip(read(data, sampling), sampling.places(len(whole)), strict=True):
            np.testing.assert_array_equal(found, whole[place])


@pytest.mark.parametrize(
    ("sampling", "total", "places"),
    [
        (FrameSampling(4), 40, [0, 10, 20, 30]),
        (FrameSampling(4), 3, [0, 0, 1, 2]),
        (FrameSampling(4), 1, [0, 0, 0, 0]),
        (FrameSampling(4, 1), 40, [0, 1, 2, 3]),
        (FrameSampling(4, 3), 40, [0, 3, 7, 11]),
        (FrameSampling(4, 3), 6, [0, 3, 5, 5]),
    ],
)
def test_places(sampling: FrameSampling, total: int, places: list[int]) -> None:
    assert sampling.places(total) == places


def test_a_film_is_not_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes, and one decodes the wanted frames and what leads up to them."""
    decoded: list[Any] = []
    whole = frames._Video._decoded

    def counted(video: Any) -> Any:
        for frame in whole(video):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(frames._Video, "_decoded", counted)
    film = videos.file(videos.moving(600, 16, 16), gop=10, rate=1)
    assert len(read(film, FrameSampling(4))) == 4
    assert len(decoded) <= 4 * 10
    decoded.clear()
    one_start = videos.file(videos.moving(300, 16, 16), "avi", "mpeg4")
    with pytest.raises(InputTooLarge, match="needs 151 frames to be decoded, over 100"):
        read(one_start, FrameSampling(2), VideoLimits(max_decoded_frames=100))
    assert not decoded


def test_a_turned_video_is_read_upright() -> None:
    """A phone's."""
    turned = videos.turned(FILE)
    lying = videos.plain(FILE)[0]
    [upright] = frames.read(turned, FrameSampling(1), WIDE, frames.image)
    assert upright.size == (48, 64)
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(lying, -1))
    [middle] = frames.read(turned, FrameSampling(1), WIDE, lambda frame: frames.centre(frame, 40, 48))
    [plain] = frames.read(FILE, FrameSampling(1), WIDE, lambda frame: frames.centre(frame, 40, 48))
    np.testing.assert_array_equal(middle, np.rot90(plain, -1))


@pytest.mark.parametrize("turns", range(4))
def test_a_mirrored_video_is_seen_as_by_a_player(turns: int) -> None:
    """A front camera's, upright or not: mirrored left to right first, then turned clockwise."""
    quarter, matrix = np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, 1]])  # rows: the images of (1, 0) and (0, 1)
    for _ in range(turns):
        matrix = matrix @ quarter
    mirrored = videos.turned(FILE, matrix.ravel().tolist())
    expected = np.rot90(videos.plain(FILE)[0][:, ::-1], -turns)
    [whole] = frames.read(mirrored, FrameSampling(1), WIDE, frames.image)
    np.testing.assert_array_equal(np.asarray(whole), expected)
    [middle] = frames.read(mirrored, FrameSampling(1), WIDE, lambda frame: frames.centre(frame, 40, 48))
    [plain] = frames.read(FILE, FrameSampling(1), WIDE, lambda frame: frames.centre(frame, 40, 48))
    np.testing.assert_array_equal(middle, np.rot90(plain[:, ::-1], -turns))


def test_data_beside_a_frame_that_pyav_does_not_know_costs_no_frame() -> None:
    """EXIF, or the view of a video for two eyes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    made, pictures = io.BytesIO(), [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")]
    pictures[0].save(made, "PNG", save_all=True, append_images=pictures[1:], exif=exif)
    first, second = frames.read(made.getvalue(), FrameSampling(2), WIDE, frames.image)
    assert first.size == (30, 40)
    assert (first.getpixel((9, 9)), second.getpixel((9, 9))) == ((255, 0, 0), (0, 255, 0))


@pytest.mark.parametrize(
    ("from_s", "length_s", "shown"),
    [(0, 2, range(20)), (1, 2, range(10, 30)), (0.5, 2, range(5, 25)), (1.3, 1.2, range(13, 25)), (0, 3, range(30))],
)
def test_of_a_trimmed_video_the_shown_frames_are_read(from_s: float, length_s: float, shown: range) -> None:
    """Hidden frames are neither sampled nor missing."""
    whole = videos.file(videos.moving(30), gop=10, rate=10)
    decoded, trimmed = videos.plain(whole), videos.trimmed(whole, from_s, length_s)
    for sampling in (FrameSampling(4), FrameSampling(4, 2), FrameSampling(40)):
        places = sampling.places(len(shown))
        for found, place in zip(read(trimmed, sampling), places, strict=True):
            np.testing.assert_array_equal(found, decoded[shown[place]])


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "libx264"),
        ("avi", "mpeg4"),
        ("flv", "libx264"),
        ("asf", "mpeg4"),
    ],
)
def test_a_video_out_of_a_pipe_is_read_whole(form: str, codec: str) -> None:
    data = videos.file(MOVING, form, codec, piped=True)
    assert len(read(data, FrameSampling(2), VideoLimits(max_video_s=2.0))) == 2  # guessed from a bit rate, it is longer
    for found, expected in zip(read(data, FrameSampling(40)), videos.plain(data), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_tags_in_other_encodings_cost_nothing() -> None:
    """Latin-1, as programs on Windows write it."""
    text = "künstler".encode("latin-1") + b"\0\0"
    info = b"INFOIART" + len(text).to_bytes(4, "little") + text
    data = videos.file(MOVING, "avi", "mpeg4") + b"LIST" + len(info).to_bytes(4, "little") + info
    np.testing.assert_array_equal(read(data, FrameSampling(1))[0], videos.plain(data[: -len(info) - 8])[0])


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        *(("matroska", "libx264", {}), ("webm", "libvpx-vp9", {}), ("avi", "libx264", {}), ("avi", "mpeg4", {})),
        *(("asf", "mpeg4", {}), ("apng", "apng", {}), ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"})),
    ],
)
def test_a_video_that_tells_its_length_is_refused_if_it_breaks_off(
    form: str, codec: str, options: dict[str, str]
) -> None:
    data = videos.file(MOVING, form, codec, options=options)
    assert len(read(data, FrameSampling(40))) == 40
    with pytest.raises(InvalidInput, match="breaks off"):
        read(data[: len(data) * 2 // 3], FrameSampling(4))


def test_odd_sizes_and_narrow_frames() -> None:
    """Sides that are no multiple of anything; a line of pixels is not blown up to a wall."""
    data = videos.file(videos.moving(3, 35, 21), "webm", "libvpx-vp9")
    assert [frame.size for frame in frames.read(data, FrameSampling(2), WIDE, frames.image)] == [(35, 21)] * 2
    narrow = videos.file(videos.moving(2, 400, 8), "matroska", "ffv1")
    [middle] = frames.read(narrow, FrameSampling(1), WIDE, lambda frame: frames.centre(frame, 224, 256))
    assert middle.shape == (224, 224, 3)


def broken_mp4() -> bytes:
    """An MP4 file whose index comes first, its end missing."""
    data = videos.file(videos.moving(40), "mov")
    start = data.index(b"mdat") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    head, media, index = data[:start], data[start : start + size], bytearray(data[start + size :])
    places = index.index(b"stco") + 8
    for number in range(int.from_bytes(index[places : places + 4], "big")):
        at = places + 4 + 4 * number
        index[at : at + 4] = (int.from_bytes(index[at : at + 4], "big") + len(index)).to_bytes(4, "big")
    return head + bytes(index) + media[: size * 2 // 3]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"no video at all, but some text " * 40, "not a complete, readable video"),
        (FILE[: len(FILE) // 2], "not a complete, readable video"),
        (broken_mp4(), "breaks off after"),
        (videos.sound(), "has no moving pictures, only audio"),
        (videos.without_frames(), "without frames"),
        (b"\x00" * 5000, "not a complete, readable video"),
    ],
    ids=["nothing", "text", "no-index", "cut-off", "sound", "zero-length", "zeros"],
)
def test_what_is_no_whole_video_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as raised:
        read(data, FrameSampling(4))
    assert raised.value.field == "input"


def test_pictures_are_no_videos_but_animations_are() -> None:
    """A GIF moves, and counts with a single frame too; a PNG is sent to another task."""
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    animation, still, photo = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pictures[0].save(animation, "GIF", save_all=True, append_images=pictures[1:])  # without a duration
    pictures[0].save(still, "GIF")
    pictures[0].save(photo, "JPEG")
    found = [frame.mean((0, 1)).tolist() for frame in read(animation.getvalue(), FrameSampling(3))]
    assert found == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert len(read(still.getvalue(), FrameSampling(3))) == 3
    with pytest.raises(InvalidInput, match="not a complete, readable video"):
        read(photo.getvalue(), FrameSampling(3))
    with pytest.raises(InvalidInput, match="is a broken animation"):
        read(animation.getvalue()[:30], FrameSampling(3))
    with pytest.raises(InputTooLarge, match="of 40 x 30 pixels"):
        read(animation.getvalue(), FrameSampling(3), VideoLimits(max_frame_pixels=1000))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """What decoders would fetch for it lies on the worker, or inside its network."""
    (tmp_path / "secret.mp4").write_bytes(FILE)
    for playlist in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n",
    ):
        with pytest.raises(InvalidInput, match="not a complete, readable video"):
            read(playlist.encode(), FrameSampling(2))


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (VideoLimits(max_frame_pixels=3000), "of 64 x 48 pixels, over 3,000"),
        (VideoLimits(max_video_s=1.0), "2 s long, over 1"),
        (VideoLimits(max_decoded_frames=4), "frames to be decoded, over 4"),
        (VideoLimits(max_decoding_s=0.0), "takes longer than 0 s"),
    ],
)
def test_too_much_is_refused(limits: VideoLimits, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it before a frame is decoded."""
    monkeypatch.setattr(frames._Video, "_decoded", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputTooLarge, match=problem):
        read(FILE, FrameSampling(8), limits)


def test_a_busy_machine_refuses_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens of envelopes are prepared at once, on few cores: the time that a file takes is its own only."""
    now = itertools.count(step=60.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "time", lambda: next(now))
    for data in (FILE, videos.file(MOVING, "gif", "gif")):
        assert len(read(data, FrameSampling(4))) == 4


def test_a_damaged_video_is_a_refusal_or_frames() -> None:
    """Whatever bytes are turned over: never another error, which would be the model's."""
    random = np.random.default_rng(0)
    sources = [FILE, videos.file(MOVING, "matroska"), videos.file(MOVING, "avi", "mpeg4")]
    refused = 0
    for trial in range(90):
        data = bytearray(sources[trial % 3])
        for _ in range(random.integers(1, 30)):
            data[random.integers(0, len(data))] = random.integers(0, 256)
        try:
            assert len(read(bytes(data), FrameSampling(4))) == 4
        except InvalidInput:
            refused += 1
    assert 0 < refused < 90


def test_wrong_limits_are_named() -> None:
    assert options.decode(VideoLimits, {"max_video_s": 5}, where="models.m") == VideoLimits(max_video_s=5)
    with pytest.raises(ConfigurationError, match=r"models\.m\.options\.max_video_s: must be a number over 0"):
        options.decode(VideoLimits, {"max_video_s": "long"}, where="models.m")


def test_ffmpeg_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker's log is not for what decoders think of broken files."""
    with pytest.raises(InvalidInput):
        read(FILE[: len(FILE) // 2], FrameSampling(4))
    assert not capfd.readouterr().err


def test_frames_are_let_go_at_once() -> None:
    """Whole frames that wait for the collection of cycles would add up to any amount of memory."""
    gc.collect()
    gc.disable()
    try:
        frames.read(FILE, FrameSampling(8), VideoLimits(), partial(frames.centre, side=32, short_side=36))
        frames.read(FILE, FrameSampling(8), VideoLimits(), frames.image)
        assert not [found for found in gc.get_objects() if type(found) is av.VideoFrame]
    finally:
        gc.enable()
