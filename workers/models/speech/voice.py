"""Voice activity detection, and cutting long recordings at pauses. Runs in the parent process, without torch.

There are two detectors; each gives the probability of speech every 32 ms. Silero's network
(https://github.com/snakers4/silero-vad) runs in numpy if its weights are in the model's folder. Otherwise loudness
decides, which takes every sound for speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

#: The detectors' sample rate, and the samples of a frame. Each frame gets one probability.
RATE = 16_000
FRAME = 512

#: The file of Silero's weights in a model's folder.
WEIGHTS = "silero_vad_16k.safetensors"

#: Speech begins at the first probability, and ends after `_PAUSE_S` below the second.
_BEGINS = 0.5
_GOES_ON = 0.35
_PAUSE_S = 0.1

#: Shorter speech is a click. Longer speech is extended by `_AROUND_S` on both sides, because it fades in and out.
_SHORTEST_S = 0.1
_AROUND_S = 0.2

#: Without the network, silence is below this level (full scale is 1), or this many times below the loudest frames.
_SILENCE = 1e-3
_LOUDEST_OVER_SPEECH = 100.0


class Span(NamedTuple):
    """A part of a recording, in samples."""

    start: int
    end: int


class Detector(Protocol):
    """Returns the probability of speech for each `FRAME` of mono samples at `RATE`; the last frame may be shorter."""

    def __call__(self, samples: Samples) -> Samples: ...


def loudness(samples: Samples) -> Samples:
    """Return 1 for each frame that is neither silent nor a hundred times quieter than the loudest frames, else 0."""
    frames = _frames(samples)
    if not len(frames):
        return np.zeros(0, np.float32)
    level = np.sqrt(np.mean(frames**2, axis=1))
    loudest = float(np.quantile(level, 0.95))
    return np.asarray(level > max(_SILENCE, loudest / _LOUDEST_OVER_SPEECH), dtype=np.float32)


def spans(likely: Samples, length: int) -> list[Span]:
    """Return the spans of speech in a recording of `length` samples, from its frames' probabilities."""
    around, shortest, pause = (round(seconds * RATE) for seconds in (_AROUND_S, _SHORTEST_S, _PAUSE_S))
    found: list[Span] = []
    start = quiet_since = -1
    for n, probability in enumerate(likely):
        at = n * FRAME
        if probability >= _BEGINS and start < 0:
            start = at
        elif probability >= _GOES_ON:
            quiet_since = -1
        elif start >= 0:
            quiet_since = at if quiet_since < 0 else quiet_since
            if at + FRAME - quiet_since >= pause:
                found.append(Span(start, quiet_since))
                start = quiet_since = -1
    if start >= 0:
        found.append(Span(start, length))
    found = [span for span in found if span.end - span.start >= shortest]
    return [Span(max(0, span.start - around), min(length, span.end + around)) for span in found]


def windows(likely: Samples, length: int, longest: int) -> list[Span]:
    """Return the windows of a recording, each up to `longest` samples. They do not overlap.

    A recording up to `longest` samples is one window. In a longer recording, speech that is close shares a window;
    speech longer than a window is cut at the most likely pause in the window's second half.
    """
    speech = spans(likely, length)
    if not speech:
        return []
    if length <= longest:
        return [Span(0, length)]
    found = [Span(speech[0].start, speech[0].start)]
    for span in speech:
        start = max(span.start, found[-1].end)
        if span.end - found[-1].start > longest and found[-1].end > found[-1].start:
            found.append(Span(start, start))
        while span.end - found[-1].start > longest:
            cut = _pause(likely, found[-1].start, longest)
            found[-1] = Span(found[-1].start, cut)
            found.append(Span(cut, cut))
        found[-1] = Span(found[-1].start, max(span.end, found[-1].end))
    return [
        window for window in found if window.end - window.start >= _SHORTEST_S * RATE
    ]  # a cut may leave a click behind


def _pause(likely: Samples, start: int, longest: int) -> int:
    """Return the cut in the second half of a window: the middle of the fifth of a second least likely to be speech."""
    first, last = (start + longest // 2) // FRAME + 1, (start + longest) // FRAME
    width = 6
    sums = np.convolve(likely[first:last], np.ones(width), "valid")
    quietest = np.flatnonzero(sums <= sums.min() + 1e-6)
    return (first + int(quietest[-1]) + width // 2) * FRAME


def _frames(samples: Samples) -> Samples:
    """Return samples as `(frames, FRAME)`, padded with zeros."""
    padded = np.zeros(-(-len(samples) // FRAME) * FRAME, np.float32)
    padded[: len(samples)] = samples
    return padded.reshape(-1, FRAME)


# --- Silero's network -----------------------------------------------------------------------------

#: The input of a frame includes the samples before it, and its own end mirrored.
_CONTEXT = 64
_MIRRORED = 64
_HOP = 128
_BINS = 129

#: The number of frames computed at once: 33 s of sound, 80 MB.
_TOGETHER = 1024


@dataclass(frozen=True)
class Silero:
    """Silero's network: a spectrum by convolution, four convolutions, an LSTM over the frames, and a probability."""

    file: Path

    def __call__(self, samples: Samples) -> Samples:
        parts = [self._encoded(_heard(samples, begin)) for begin in range(0, len(samples), _TOGETHER * FRAME)]
        return self._recurrent(np.concatenate(parts)) if parts else np.zeros(0, np.float32)

    @cached_property
    def _weights(self) -> dict[str, Samples]:
        from safetensors.numpy import load_file

        return dict(load_file(self.file))

    def _encoded(self, heard: Samples) -> Samples:
        """Return the LSTM's input for each frame, `(frames, 128)`."""
        padded = np.concatenate([heard, heard[:, -2 : -2 - _MIRRORED : -1]], axis=1)
        parts = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HOP, axis=1)[:, ::_HOP]
        waves = parts @ self._weights["stft_conv.weight"][:, 0].T
        hidden = np.sqrt(waves[..., :_BINS] ** 2 + waves[..., _BINS:] ** 2).astype(np.float32)
        for number, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
            hidden = self._convolved(hidden, f"conv{number}", stride)
        return np.asarray(hidden[:, 0])

    def _convolved(self, hidden: Samples, name: str, stride: int) -> Samples:
        """Convolve over time, `(frames, time, channels)`, with a kernel of width 3 and zero padding."""
        padded = np.pad(hidden, ((0, 0), (1, 1), (0, 0)))
        parts = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)[:, ::stride]
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        out = parts.reshape(*parts.shape[:2], -1) @ weight.reshape(len(weight), -1).T + bias
        return np.asarray(np.maximum(out, 0.0), dtype=np.float32)

    def _recurrent(self, encoded: Samples) -> Samples:
        """Run the LSTM over the frames; return each frame's probability."""
        weights = self._weights
        inputs = (
            encoded @ weights["lstm_cell.weight_ih"].T + weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
        )
        recurrent = np.ascontiguousarray(weights["lstm_cell.weight_hh"].T)
        state = cell = np.zeros(encoded.shape[1], np.float32)
        states = np.empty_like(encoded)
        for n, own in enumerate(inputs):
            gates = own + state @ recurrent
            take, keep, new, show = np.split(gates, 4)
            cell = _sigmoid(keep) * cell + _sigmoid(take) * np.tanh(new)
            state = _sigmoid(show) * np.tanh(cell)
            states[n] = state
        last = np.maximum(states, 0) @ weights["final_conv.weight"].ravel() + weights["final_conv.bias"]
        return _sigmoid(last).astype(np.float32)


def _heard(samples: Samples, begin: int) -> Samples:
    """Return up to `_TOGETHER` frames from sample `begin`, each after its context: `(frames, _CONTEXT + FRAME)`."""
    frames = _frames(samples[begin : begin + _TOGETHER * FRAME])
    before = np.zeros((len(frames), _CONTEXT), np.float32)
    before[1:] = frames[:-1, -_CONTEXT:]
    if begin:
        before[0] = samples[begin - _CONTEXT : begin]
    return np.concatenate([before, frames], axis=1)


def _sigmoid(values: Samples) -> Samples:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), dtype=np.float32)


def detector(folders: Sequence[Path]) -> Detector:
    """Return Silero's network if its weights are in one of these folders, else loudness."""
    found = next((folder / WEIGHTS for folder in folders if (folder / WEIGHTS).is_file()), None)
    return Silero(found) if found else loudness
