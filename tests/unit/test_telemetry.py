"""Nothing is reported to anybody: the libraries that do so by default are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import devices

ROOT = Path(__file__).parents[2]

RUNTIMES = [
    "workers.models.backends.onnx_network; import onnxruntime",
    "workers.models.backends.openvino_network; import openvino",
]


@pytest.mark.parametrize("imports", RUNTIMES)
def test_a_runtime_reports_nothing(imports: str, tmp_path: Path) -> None:
    """ONNX Runtime left a session file in the temp folder, OpenVINO's converter took a missing file for consent."""
    temp, home = tmp_path / "temp", tmp_path / "home"
    temp.mkdir()
    home.mkdir()
    code = f"import sys, {imports}; from openvino.tools.ovc import telemetry_utils as t; print(t.tm.__name__)"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"TMPDIR": str(temp), "HOME": str(home)}
    command = [sys.executable, "-c", code if "openvino" in imports else f"import {imports}"]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not list(temp.iterdir())
    assert "openvino_telemetry" not in ran.stdout.split()


def test_device_processes_report_nothing() -> None:
    """A library that imports ONNX Runtime by itself finds it switched off, too."""
    assert devices.pinned_environment(devices.cpu(), {})["ORT_DISABLE_TELEMETRY"] == "1"
