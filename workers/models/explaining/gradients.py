"""The arithmetic of integrated gradients: the points at which gradients are taken, and their weights.

A contribution is (x - x') times the mean gradient along the straight line from the baseline x' to the input x. The mean
is an integral. Gauss-Legendre quadrature needs tens of points where equal steps need hundreds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@cache
def quadrature(steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return positions on the line, 0 to 1, and their weights, which add up to 1; then both ends, with weight 0."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (*((nodes + 1) / 2).tolist(), 0.0, 1.0), (*(weights / 2).tolist(), 0.0, 0.0)


def margin(logits: torch.Tensor, targets: torch.Tensor, *, rivals: bool) -> torch.Tensor:
    """Return each row's log-odds of its target `(rows,)`: its logit, with `rivals` less the mean of the others.

    This is log(p / (1 - p)) for two labels under a softmax, and for a single label under a sigmoid.
    """
    own = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    if not rivals or logits.shape[1] == 1:
        return own
    return own - (logits.sum(1) - own) / (logits.shape[1] - 1)
