"""OpenAI's package and three others that speak its API, unmodified, each as a program of its own; and schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end import generated_requests
from tests.end_to_end.gateway_server import Served

RECORDING = Path(__file__).parents[1] / "data" / "speech" / "austen-0880.flac"

#: 200 of each operation were tried when this was written.
EXAMPLES = int(os.environ.get("ARGOSY_TEST_EXAMPLES", "25"))

#: All but two: a text of the right type may still be no task, and a number may be written as a text.
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance,negative_data_rejection"]


@pytest.mark.parametrize("name", ["openai", "langchain", "litellm", "llama_index"])
def test_a_client(served: Served, clients_python: str, name: str, tmp_path: Path) -> None:
    """Everything that it does here works, and what is not served is refused in its own words."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
        "OPENAI_BASE_URL": f"{served.url}/v1",
        "OPENAI_API_KEY": served.key("ours"),
        "RECORDING": str(RECORDING),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is downloaded
    }
    script = Path(__file__).parent / f"with_{name}.py"
    ran = subprocess.run(
        [clients_python, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_description_is_true(served: Served, tmp_path: Path) -> None:
    """Generated requests get no server error, no answer of another form than described, and every allowed method."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{served.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {served.key('fuzz', operator=True)}", *CHECKS]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "7", "--no-color"]
    env = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": generated_requests.__name__,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    print(ran.stdout)  # noqa: T201 - the figures
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
