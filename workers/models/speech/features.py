"""The input features of speech models, by their ``preprocessor_config.json``: samples or a spectrum.

All code is numpy, for the parent process. When the model is loaded, `check` compares with transformers' own extractor
and rejects a difference. Spectra use mel bands: Slaney's (Auditory Toolbox, 1998) for Whisper, Kaldi's for AST.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface.checkpoint import Checkpoint, loading
from workers.models.interface.model import Array

Samples = NDArray[np.float32]

#: The allowed difference from transformers' extractor.
_TOLERANCE = 1e-3


class Extractor(Protocol):
    """Turns samples at `rate` into a network's input. Raises InvalidInput if they are too short."""

    #: The name of the network's input.
    name: str

    @property
    def rate(self) -> int: ...
    def __call__(self, samples: Samples) -> Array: ...


@dataclass(frozen=True)
class Raw:
    """The samples, normalised to mean 0 and deviation 1 if the folder says so: Wav2Vec2 and similar models."""

    config: Mapping[str, Any]
    name = "input_values"

    @property
    def rate(self) -> int:
        return int(self.config.get("sampling_rate", 16_000))

    def __call__(self, samples: Samples) -> Array:
        if not self.config.get("do_normalize", True):
            return samples
        return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), dtype=np.float32)


@dataclass(frozen=True)
class LogMel:
    """Whisper's spectrum, `(bands, frames)`: log power, at most 80 decibels below the loudest value, without padding
    to 30 s.
    """

    config: Mapping[str, Any]
    name = "input_features"

    @property
    def rate(self) -> int:
        return int(self.config.get("sampling_rate", 16_000))

    @property
    def hop(self) -> int:
        return int(self.config.get("hop_length", 160))

    @property
    def longest(self) -> int:
        """The samples of a whole window."""
        return int(self.config.get("chunk_length", 30)) * self.rate

    @property
    def bands(self) -> int:
        return int(self.config.get("feature_size", 80))

    @cached_property
    def _bank(self) -> Array:
        return slaney_bank(self._width // 2 + 1, self.bands, self.rate)

    @property
    def _width(self) -> int:
        return int(self.config.get("n_fft", 400))

    def __call__(self, samples: Samples) -> Array:
        padded = self._padded(samples[: self.longest])
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._width)[:: self.hop]
        frames = frames[: self._frames(len(samples))]
        window = np.hanning(self._width + 1)[:-1].astype(np.float32)
        power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
        level = np.log10(np.maximum(self._bank @ power.T, 1e-10))
        return np.asarray((np.maximum(level, level.max() - 8.0) + 4.0) / 4.0, dtype=np.float32)

    def _frames(self, samples: int) -> int:
        """Return the number of frames that contain sound: a frame per hop, and the frames that reach back into it."""
        return min(self.longest // self.hop, -(-samples // self.hop) + self._beyond)

    @property
    def _beyond(self) -> int:
        return -(-self._width // 2 // self.hop)

    def sounding(self, frames: int) -> int:
        """Return the hops of sound in a spectrum of `frames` frames. A whole window may have slightly fewer."""
        return frames if frames == self.longest // self.hop else frames - self._beyond

    def _padded(self, samples: Samples) -> Samples:
        """Pad samples: mirrored before; zeros behind, or mirrored if the window is full."""
        half = self._width // 2
        if len(samples) == self.longest:
            return np.pad(samples, half, mode="reflect")
        behind = min(self.longest, len(samples) + 2 * half)
        whole = np.zeros(behind, np.float32)
        whole[: len(samples)] = samples
        return np.pad(whole, half, mode="reflect")

    def filled(self, found: Array) -> Array:
        """Pad a spectrum with silence to the length of a whole window, which the network expects.

        Silence is at -100 decibels, but at most 80 decibels below the loudest sound.
        """
        silence = max((-10.0 + 4.0) / 4.0, float(found.max()) - 2.0)
        whole = np.full((len(found), self.longest // self.hop), silence, dtype=np.float32)
        whole[:, : found.shape[1]] = found
        return whole


@dataclass(frozen=True)
class KaldiMel:
    """The spectrum of the Audio Spectrogram Transformer, `(frames, bands)`, cut or padded to its length."""

    config: Mapping[str, Any]
    name = "input_values"

    @property
    def rate(self) -> int:
        return int(self.config.get("sampling_rate", 16_000))

    @cached_property
    def _bank(self) -> Array:
        return kaldi_bank(257, int(self.config.get("num_mel_bins", 128)), self.rate)

    def __call__(self, samples: Samples) -> Array:
        if len(samples) < 400:
            raise InvalidInput(
                "input", f"has {len(samples)} samples, under the 400 of a frame", "send a longer recording"
            )
        frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160].astype(np.float64)
        frames = frames - frames.mean(axis=1, keepdims=True)
        emphasised = np.concatenate([frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], axis=1)
        power = np.abs(np.fft.rfft(emphasised * np.hanning(400), 512, axis=1)) ** 2
        level = np.log(np.maximum(power @ self._bank.T, 1.192092955078125e-07)).astype(np.float32)
        length = int(self.config.get("max_length", 1024))
        whole = np.zeros((length, level.shape[1]), dtype=np.float32)
        whole[: len(level)] = level[:length]
        if not self.config.get("do_normalize", True):
            return whole
        mean, deviation = float(self.config.get("mean", -4.2677393)), float(self.config.get("std", 4.5689974))
        return np.asarray((whole - mean) / (deviation * 2), dtype=np.float32)


#: The extractors by their names in a folder.
_EXTRACTORS: Mapping[str, type[Raw | LogMel | KaldiMel]] = {
    "Wav2Vec2FeatureExtractor": Raw,
    "WhisperFeatureExtractor": LogMel,
    "ASTFeatureExtractor": KaldiMel,
}


def extractor(checkpoint: Checkpoint) -> Extractor:
    """Return a folder's extractor. Raises ConfigurationError if it is not supported."""
    config = settings(checkpoint)
    name = str(config.get("feature_extractor_type", ""))
    if name not in _EXTRACTORS:
        known = ", ".join(_EXTRACTORS)
        problem = f"preprocessor_config.json has the extractor {name!r}; supported: {known}"
        raise ConfigurationError(f"{checkpoint.where}: {problem}; write a class for it (docs/models.md)")
    return _EXTRACTORS[name](config)


def settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the settings of a folder's extractor, from its own file or from the processor's file."""
    own = checkpoint.read_if_there("preprocessor_config.json")
    if own:
        return own
    found: Mapping[str, Any] = checkpoint.read("processor_config.json").get("feature_extractor", {})
    return found


def check(ours: Extractor, folder: Path, where: str) -> None:
    """Compare with transformers' own extractor on a chirp. Raises ConfigurationError if they differ."""
    from transformers import AutoFeatureExtractor

    with loading(folder, where):
        theirs = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    at = np.arange(ours.rate, dtype=np.float32) / ours.rate
    chirp = (0.3 * np.sin(2 * np.pi * (200 + 3000 * at) * at) * at).astype(np.float32)
    expected = np.asarray(theirs(chirp, sampling_rate=ours.rate, return_tensors="np")[ours.name][0])
    found = ours(chirp)
    if isinstance(ours, LogMel):
        found = ours.filled(found)
    if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE:  # NaN is not
        problem = f"recordings are not prepared as by {type(theirs).__name__}"
        raise ConfigurationError(f"{where}: {problem}; write a class for it (docs/models.md)")


# --- mel bands ------------------------------------------------------------------------------------


def slaney_bank(bins: int, bands: int, rate: int) -> Array:
    """Return Slaney's bands up to 8 kHz, `(bands, bins)`: linear below 1 kHz, logarithmic above, with equal areas."""
    edges = _slaney_hertz(np.linspace(0.0, 15.0 + 27.0 * np.log(8.0) / np.log(6.4), bands + 2))
    found = _triangles(np.linspace(0, rate // 2, bins), edges)
    return np.asarray(found * (2.0 / (edges[2:] - edges[:-2]))[:, None], dtype=np.float32)


def _slaney_hertz(mels: Array) -> Array:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mels - 15.0)))


def kaldi_bank(bins: int, bands: int, rate: int) -> Array:
    """Return Kaldi's bands from 20 Hz to half the rate, `(bands, bins)`: triangles over mels, not over hertz."""

    def mels(hertz: Any) -> Any:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mels(20.0), mels(rate // 2), bands + 2)
    return _triangles(mels(np.arange(bins) * (rate / ((bins - 1) * 2))), edges)


def _triangles(places: Array, edges: Array) -> Array:
    """Return a triangle over each three neighbouring edges, `(bands, places)`."""
    distances = edges[:, None] - places[None]
    widths = np.diff(edges)[:, None]
    return np.maximum(0.0, np.minimum(-distances[:-2] / widths[:-1], distances[2:] / widths[1:]))
