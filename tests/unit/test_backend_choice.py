"""Which of the measured backends wins."""

from __future__ import annotations

import pytest

from workers.batching.serving.tuned_backend import MeasuredBackend, best_of
from workers.models.backends.choice import Backend, Name, Precision


def measured(name: Name, precision: Precision, turns: tuple[float, float, float], refused: str = "") -> MeasuredBackend:
    slowest, median, fastest = turns
    return MeasuredBackend(
        backend=Backend(name, precision),
        items_per_s=median,
        slowest=slowest,
        fastest=fastest,
        agreement=1.0,
        shift=0.0,
        refused=refused,
    )


FP32 = measured("openvino", "fp32", (3600, 3709, 3800))


@pytest.mark.parametrize(
    ("bf16", "chosen"),
    [
        (measured("openvino", "bf16", (3700, 3787, 3900)), "openvino-fp32"),  # within noise
        (measured("openvino", "bf16", (3000, 9000, 9900)), "openvino-fp32"),  # faster, but not in each turn
        (measured("openvino", "bf16", (4100, 4150, 4200)), "openvino-fp32"),  # by less than the least gain
        (measured("openvino", "bf16", (4200, 4300, 4400)), "openvino-bf16"),
        (measured("openvino", "bf16", (7000, 8000, 9000), refused="answers differ"), "openvino-fp32"),
    ],
)
def test_less_precision_wins_only_beyond_the_noise(bf16: MeasuredBackend, chosen: str) -> None:
    """Scores move by a hundredth in bf16: that is not given for a measurement's error."""
    slow = measured("torch", "fp32", (900, 1000, 1100))
    assert str(best_of([slow, bf16, FP32]).backend) == chosen


def test_each_step_down_in_precision_must_pay_again() -> None:
    """fp16 pays over fp32, bf16 does not over fp16, int8 does."""
    fp32 = measured("torch", "fp32", (90, 100, 110))
    fp16 = measured("torch", "fp16", (290, 300, 310))
    bf16 = measured("torch", "bf16", (300, 320, 330))
    int8 = measured("onnxruntime", "int8", (500, 510, 520))
    assert best_of([fp32, bf16, fp16]) is fp16
    assert best_of([fp32, bf16, fp16, int8]) is int8
