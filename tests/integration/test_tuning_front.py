"""`argosy tune --out` on tiny checkpoints: measured, kept, gone on with, and served by the settings that it writes."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests import tiny_checkpoints as tiny
from workers import settings
from workers.batching.serving import served_models
from workers.commands.tune import tune
from workers.device import devices
from workers.training.pareto.tuning_run import TunedFile

pytestmark = pytest.mark.training

TEXTS = [" ".join(tiny.WORDS[n : n + 3 + n % 9]) for n in range(24)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARGOSY_FLEET", raising=False)


def run(*given: object) -> tuple[str, int]:
    done = CliRunner().invoke(tune, [str(one) for one in given], standalone_mode=True)
    return f"{done.output}{done.exception or ''}", done.exit_code


@pytest.mark.timeout(900)
def test_a_run_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    """The original first, a variant in a second call; what was measured is not measured again. The node is pinned, so
    that few backends are measured.
    """
    tiny.bert(tmp_path / "mood", num_labels=3, num_hidden_layers=3)
    small = tmp_path / "small" / "mood"
    tiny.bert(small, num_labels=3, num_hidden_layers=1)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "mood"), *((text, f"LABEL_{n % 3}") for n, text in enumerate(TEXTS))])
    out = tmp_path / "tuned"
    given = (tmp_path / "mood", "--out", out, "--rows", tmp_path / "rows.csv", "--threads", "1", "--most-lost", "100")
    given = (*given, "--device", "openvino:cpu")
    said, code = run(*given)
    assert (code, said.count("measuring")) == (0, 1), said
    said, code = run(*given, "--variant", small)
    assert (code, said.count("measuring")) == (0, 1), said
    assert f"measuring {small} with 1 threads on openvino:CPU" in said
    found = msgspec.json.decode((out / "tuned.json").read_bytes(), type=TunedFile)
    points = [point for own in found.runs.values() for point in own]
    assert {point.variant for point in points} == {"original", str(small)}
    assert {str(point.backend) for point in points} == {"openvino-fp32@CPU", "openvino-bf16@CPU"}
    assert all(0 <= point.accuracy["mood"] <= 1 and point.latency_ms > 0 for point in points if not point.refused)
    whole = settings.load(out / "fleet.toml")
    [device] = devices.select("auto", ("openvino:CPU",))
    wanted, served = served_models.serve(whole, "mood", device)
    assert found.chosen is not None
    assert (wanted.backend, served.budget.cost) == (found.chosen.backend, found.chosen.batch_cost)
    assert wanted.folder == str(small if found.chosen.variant == str(small) else tmp_path / "mood")
    said, code = run(*given, "--variant", f"{small}/", "--variant", small)
    assert (code, said.count("measuring")) == (0, 0), said
    found = msgspec.json.decode((out / "tuned.json").read_bytes(), type=TunedFile)
    assert {point.variant for own in found.runs.values() for point in own} == {"original", f"{small}/"}


def test_a_time_that_is_too_short_names_what_is_left(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "mood", num_labels=3)
    said, code = run(tmp_path / "mood", "--out", tmp_path / "tuned", "--within", "0.001")
    assert code
    assert "the time was over before its first measurement ended; allow more than" in said


def test_what_does_not_fit_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "mood", num_labels=3)
    tiny.bert(tmp_path / "names", "BertForTokenClassification")
    out = tmp_path / "tuned"
    for given, reason in (
        ((tmp_path / "mood", "--variant", "x"), "--variant: is for --out FOLDER"),
        ((tmp_path / "mood", "--out", out, "--quick"), "--out: measures one model, and without --quick"),
        (
            (tmp_path / "mood", "--out", out, "--variant", tmp_path / "names"),
            "has the tasks names (token-classification), and mood mood (text-classification)",
        ),
        ((tmp_path / "mood", "--out", out, "--threads", "0"), "'0' must be numbers over 0"),
    ):
        said, code = run(*given)
        assert code, said
        assert reason in said
    assert not out.exists()
