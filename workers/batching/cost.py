"""What a batch costs in seconds, learned from the batches that ran: seconds = fixed + rate · padded cost.

One such line per model, fitted online by least squares with exponentially fading weights, so that it follows a machine
whose speed changes. The ancestor is BentoML's dispatcher (a·n + b over the number of items, ``bentoml/_internal/marshal``);
ours is over the padded cost, since an item's length is what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

#: How much of the past an observation leaves: after 100 batches about an eighth of its weight.
FADING = 0.98

#: The most of a shortened batch's time that may be its fixed part.
MOST_FIXED_SHARE = 0.2

#: Observations before a line is believed.
ENOUGH = 5.0


@dataclass(slots=True)
class _Sums:
    """Faded sums over observations (x padded cost, y seconds)."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.n = self.n * FADING + 1.0
        self.x = self.x * FADING + x
        self.y = self.y * FADING + y
        self.xx = self.xx * FADING + x * x
        self.xy = self.xy * FADING + x * y

    def line(self) -> tuple[float, float] | None:
        """Return (fixed seconds, seconds per unit), both at least 0, or None while too little is known."""
        if self.n < ENOUGH or self.y <= 0:
            return None
        spread = self.n * self.xx - self.x * self.x
        through_zero = self.xy / self.xx
        if spread <= 1e-6 * self.n * self.xx:  # all batches alike: only their mean is known
            return 0.0, through_zero
        rate = (self.n * self.xy - self.x * self.y) / spread
        fixed = (self.y - rate * self.x) / self.n
        if rate <= 0 or fixed < 0:
            return 0.0, through_zero
        return fixed, rate


class CostModel:
    """The lines of one device's models. Not thread-safe: the batcher's thread owns it."""

    def __init__(self, learned: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._sums = {model: _Sums(**sums) for model, sums in (learned or {}).items()}

    def observe(self, model: str, padded_cost: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        self._sums.setdefault(model, _Sums()).add(float(padded_cost), seconds)

    def seconds(self, model: str, padded_cost: int) -> float | None:
        """Predict how long a batch takes, or None while too little is known of the model."""
        line = self._line(model)
        return None if line is None else line[0] + line[1] * padded_cost

    def largest(self, model: str, seconds: float) -> int | None:
        """Return the largest padded cost that is predicted to take at most `seconds`; None while too little is known.

        Never less than what keeps the fixed part under `MOST_FIXED_SHARE`: short batches are for the sake of urgent
        items, and those are not served by a device that spends its time on overhead.
        """
        line = self._line(model)
        if line is None:
            return None
        fixed, rate = line
        least = fixed * (1 / MOST_FIXED_SHARE - 1)
        return int(max(seconds - fixed, least) / rate)

    def learned(self) -> dict[str, dict[str, float]]:
        """Return what was learned, as plain values for `__init__`."""
        return {model: asdict(sums) for model, sums in self._sums.items()}

    def _line(self, model: str) -> tuple[float, float] | None:
        sums = self._sums.get(model)
        return sums.line() if sums else None
