"""Nothing is reported to anybody: the libraries that do so by default are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workers.device import devices

ROOT = Path(__file__).parents[2]


def printed(code: str, folder: Path) -> str:
    """Return what `code` prints on a machine that knows neither CI nor the user: `folder` is home and temp folder."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"TMPDIR": str(folder), "HOME": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_onnx_runtime_opens_no_session(tmp_path: Path) -> None:
    """It writes the session that it reports into the temp folder, as soon as it is imported."""
    printed("import workers.models.backends.onnx_network, onnxruntime", tmp_path)
    assert not (tmp_path / ".ses").exists()


def test_openvino_converts_with_its_stub(tmp_path: Path) -> None:
    """Its converter takes a missing file of consent for consent."""
    name = "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    used = printed(f"import workers.models.backends.openvino_network; {name}", tmp_path)
    assert used == "openvino.tools.ovc.telemetry_stub"


def test_device_processes_report_nothing() -> None:
    """A library that imports ONNX Runtime by itself finds it switched off, too."""
    assert devices.pinned_environment(devices.cpu(), {})["ORT_DISABLE_TELEMETRY"] == "1"
