"""The text and the vision model, real in the parent process, on a device that sleeps and answers with checksums."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import answers, devices, trees

#: The variable that names the device of devices.toml.
DEVICE = "ARGOSY_SCRIPTED_DEVICE"


class _OnScriptedDevice:
    """The device's half of a model."""

    spec: Any
    labels: Any

    def load(self, device: str) -> None:
        self._scripted = devices.named(os.environ[DEVICE])

    def forward(self, arrays: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        sums, tokens = self._read(arrays)
        outputs = {
            task: answers.output(sums[rows], task, len(self.labels(self.spec.tasks[task])))
            for task, rows in wanted.items()
        }
        rest_s = self._scripted.seconds(tokens) - (time.perf_counter() - started)
        if rest_s > 0:
            time.sleep(rest_s)
        return outputs

    def _read(self, arrays: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        raise NotImplementedError


class ScriptedText(_OnScriptedDevice, trees.text_model()):  # type: ignore[misc]
    """The text model; batches cost their padded tokens."""

    def _read(self, arrays: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        return answers.of_tokens(arrays["ids"], arrays["mask"]), arrays["ids"].size


class ScriptedVision(_OnScriptedDevice, trees.vision_model()):  # type: ignore[misc]
    """The vision model; a picture costs a token."""

    def _read(self, arrays: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        return answers.of_pixels(arrays["pixels"]), len(arrays["pixels"])
