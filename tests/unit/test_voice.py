"""Where somebody speaks, where a long recording is cut, and that the detector in numpy is the network that it says
it is.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.models.sources.model_source import Pulled
from workers.models.speech import voice
from workers.models.speech.voice import FRAME, RATE, Samples, Span

FRAMES_PER_S = RATE / FRAME


def likely(*parts: tuple[float, float]) -> Samples:
    """Probabilities: (seconds, probability) after one another."""
    return np.concatenate([np.full(round(seconds * FRAMES_PER_S), p, np.float32) for seconds, p in parts])


def seconds(spans: list[Span]) -> list[tuple[float, float]]:
    return [(round(span.start / RATE, 1), round(span.end / RATE, 1)) for span in spans]


def test_speech_has_a_little_around_it() -> None:
    """It begins when it is likely, goes on while it is not unlikely, survives a short pause, and a click is none."""
    found = likely((1, 0), (1, 0.9), (0.06, 0.1), (1, 0.4), (1, 0), (0.06, 0.9), (1, 0))
    assert seconds(voice.spans(found, len(found) * FRAME)) == [(0.8, 3.2)]
    to_the_end = likely((0.1, 0.9), (1, 0), (0.5, 0.9))
    assert seconds(voice.spans(to_the_end, len(to_the_end) * FRAME)) == [(0.9, 1.6)]


def test_a_short_recording_is_heard_as_a_whole_or_not_at_all() -> None:
    some = likely((2, 0), (1, 0.9), (2, 0))
    assert voice.windows(some, len(some) * FRAME, 30 * RATE) == [Span(0, len(some) * FRAME)]
    none = likely((5, 0.2))
    assert voice.windows(none, len(none) * FRAME, 30 * RATE) == []
    assert voice.windows(np.zeros(0, np.float32), 0, 30 * RATE) == []


def test_a_long_recording_is_cut_in_its_pauses() -> None:
    """What is near is heard together; silence between windows is not heard."""
    speech = [(8.0, 0.9), (1.0, 0.0)] * 3 + [(20.0, 0.0), (5.0, 0.9)]
    found = likely(*speech)
    assert seconds(voice.windows(found, len(found) * FRAME, 20 * RATE)) == [(0.0, 17.2), (17.8, 26.2), (46.8, 52.0)]


def test_speech_without_a_pause_is_cut_where_one_is_likeliest() -> None:
    """In the second half of a window; where nothing tells, at its end."""
    found = likely((22, 0.9), (0.3, 0.6), (20, 0.9))
    first, second = seconds(voice.windows(found, len(found) * FRAME, 30 * RATE))
    assert first[1] == second[0] == pytest.approx(22.1, abs=0.15)
    even = likely((50, 0.9))
    assert seconds(voice.windows(even, len(even) * FRAME, 30 * RATE))[0] == (0.0, pytest.approx(30, abs=0.2))


@given(st.lists(st.tuples(st.floats(0.04, 9), st.sampled_from([0.0, 0.3, 0.45, 0.9])), min_size=1, max_size=20))
def test_windows_are_in_order_apart_and_never_too_long(parts: list[tuple[float, float]]) -> None:
    """And no speech is left out, but for clicks."""
    found, longest = likely(*parts), 8 * RATE
    length = len(found) * FRAME
    windows = voice.windows(found, length, longest)
    assert all(0 <= window.start < window.end <= length for window in windows)
    assert all(window.end - window.start <= longest for window in windows)
    assert all(one.end <= other.start for one, other in pairwise(windows))
    heard = np.zeros(length, bool)
    for window in windows:
        heard[window.start : window.end] = True
    for span in voice.spans(found, length):
        assert (~heard[span.start : span.end]).sum() < 0.1 * RATE


def test_loudness_takes_every_sound_for_speech_and_no_silence() -> None:
    """A hum under loud speech is silence to it, a hum by itself is not."""
    at = np.arange(RATE, dtype=np.float32) / RATE
    loud, quiet = (np.asarray(level * np.sin(2 * np.pi * 200 * at), dtype=np.float32) for level in (0.5, 0.004))
    assert voice.loudness(np.concatenate([loud, quiet])).mean() == pytest.approx(0.5, abs=0.05)
    assert voice.loudness(quiet).all()
    assert not voice.loudness(np.zeros(RATE, np.float32)).any()
    assert len(voice.loudness(np.zeros(0, np.float32))) == 0


def test_silero_in_numpy_is_the_network(pulled_speech: Pulled) -> None:
    """Beside torch's own layers with the same weights, frame by frame; longer than one portion."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(pulled_speech.folder / voice.WEIGHTS)
    random = np.random.default_rng(0)
    samples = np.asarray(random.normal(size=40 * FRAME + 77) * np.linspace(0, 0.3, 40 * FRAME + 77), dtype=np.float32)
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.partition(".")[2]: own for name, own in weights.items() if name.startswith("lstm_cell")})
    padded = torch.nn.functional.pad(torch.from_numpy(samples), (64, -len(samples) % FRAME))
    state, expected = None, []
    with torch.inference_mode():
        for start in range(0, len(padded) - 64, FRAME):
            frame = torch.nn.functional.pad(padded[None, start : start + FRAME + 64], (0, 64), mode="reflect")[:, None]
            waves = torch.nn.functional.conv1d(frame, weights["stft_conv.weight"], stride=128)
            hidden = (waves[:, :129] ** 2 + waves[:, 129:] ** 2).sqrt()
            for number, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
                own = (weights[f"conv{number}.weight"], weights[f"conv{number}.bias"])
                hidden = torch.nn.functional.conv1d(hidden, *own, stride=stride, padding=1).relu()
            state = cell(hidden[..., 0], state)
            last = torch.nn.functional.conv1d(
                state[0].relu()[..., None], weights["final_conv.weight"], weights["final_conv.bias"]
            )
            expected.append(float(last.sigmoid()))
    detector = voice.detector([Path("nowhere"), pulled_speech.folder])
    np.testing.assert_allclose(detector(samples), expected, atol=1e-5)
    assert voice.detector([Path("nowhere")]) is voice.loudness
    assert len(detector(samples[:0])) == 0


def test_a_recording_in_several_portions_is_one(pulled_speech: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = voice.detector([pulled_speech.folder])
    samples = np.asarray(np.random.default_rng(1).normal(size=30 * FRAME) * 0.1, dtype=np.float32)
    whole = detector(samples)
    monkeypatch.setattr(voice, "_TOGETHER", 7)
    np.testing.assert_allclose(detector(samples), whole, atol=1e-6)
