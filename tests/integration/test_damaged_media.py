"""Files with damaged headers: a sound, a video, a picture is what a player makes of it, or a refusal that names why.

`make test-media` tries ten thousand of each. They are decoded in processes, since some end FFmpeg.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from producers.wire.errors import InvalidInput
from producers.wire.messages import Priority
from tests import decoding_functions, media_files
from workers.device.devices import cpu, pinned_environment
from workers.envelope.preparation_turns import PreparationTurn
from workers.models.decoding import isolation
from workers.models.decoding.decoder_pool import DecoderPool
from workers.models.decoding.decoding_limits import DecodingLimits
from workers.models.decoding.isolation import DecodingPlace, decoding_at
from workers.models.pictures import pixels
from workers.models.speech import waveform
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling

SEEDS = int(os.environ.get("ARGOSY_MEDIA_SEEDS", "150"))


@pytest.fixture(scope="module", autouse=True)
def _apart() -> Iterator[None]:
    pool = DecoderPool(DecodingLimits(), pinned_environment(cpu(), os.environ, threads=1), cores=2)
    pool.start()
    with decoding_at(DecodingPlace(pool, (int(Priority.BULK), ""), PreparationTurn(None))):
        yield
    pool.close()


def each(files: Callable[[], dict[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for seed in range(SEEDS):
        draw = random.Random(seed)
        name = draw.choice(sorted(files()))
        yield f"seed {seed}, {name}", media_files.damaged(files()[name], draw)


def answer(read: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return an answer, or a refusal with a problem and a remedy. Any other error fails the test."""
    try:
        return read(*args, **options)
    except InvalidInput as error:
        refusal = error
    assert refusal.field == "input"
    assert refusal.problem
    assert refusal.remedy
    return refusal


def test_sounds() -> None:
    """The very samples; more only where the header's size was mended."""
    outcomes: Counter[str] = Counter()
    for name, data in each(media_files.sounds):
        played = answer(isolation.decode, decoding_functions.heard, data, ",".join(waveform.FORMATS))
        rate, expected = (0, []) if isinstance(played, InvalidInput) else played
        found = answer(waveform.decode, data, rate=rate or 16_000, max_s=60)
        if isinstance(found, InvalidInput):
            outcomes["refused"] += 1
            assert "not an audio file" not in found.problem or not len(expected), name
            continue
        outcomes["heard"] += 1
        np.testing.assert_array_equal(found[: len(expected)], expected, err_msg=name)
    assert min(outcomes["refused"], outcomes["heard"]) > SEEDS // 10


def test_videos() -> None:
    """The very frames, if a player decodes them all."""
    outcomes: Counter[str] = Counter()
    limits = frames.VideoLimits(max_frame_pixels=1_000_000)
    for name, data in each(media_files.clips):
        played = answer(isolation.decode, decoding_functions.seen, data, ",".join(frames.FORMATS))
        found = answer(frames.made, data, FrameSampling(3), limits, decoding_functions.checksum)
        if isinstance(found, InvalidInput):
            outcomes["refused"] += 1
            continue
        outcomes["seen"] += 1
        assert len(found) == 3, name
        if not isinstance(played, InvalidInput) and played:
            assert set(found) <= set(played), name
    assert min(outcomes["refused"], outcomes["seen"]) > SEEDS // 10


def test_pictures() -> None:
    """The very pixels that Pillow gives."""
    outcomes: Counter[str] = Counter()
    for name, data in each(media_files.pictures):
        opened = answer(isolation.decode, decoding_functions.opened, data, pixels.FORMATS)
        found = answer(pixels.read, data, decoding_functions.picture_checksum)
        if isinstance(found, InvalidInput):
            outcomes["refused"] += 1
            continue
        outcomes["seen"] += 1
        assert found == opened or not opened, name
    assert min(outcomes["refused"], outcomes["seen"]) > SEEDS // 10
