"""The arithmetic of integrated gradients: where on the way from a baseline to the input a gradient is taken, and what it counts.

A contribution is (x - x') times the mean gradient along the straight line from the baseline x' to the input x. The mean is an integral,
and Gauss-Legendre quadrature needs some tens of points for what equal steps need hundreds for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@cache
def quadrature(steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return places on the way, 0 to 1, and their weights, which add up to 1; then the two ends, which count nothing."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (*((nodes + 1) / 2).tolist(), 0.0, 1.0), (*(weights / 2).tolist(), 0.0, 0.0)


def margin(logits: torch.Tensor, targets: torch.Tensor, *, rivals: bool) -> torch.Tensor:
    """Return the log-odds of each row's target `(rows,)`: with `rivals` its logit less the mean of the others', else alone.

    For two labels under a softmax this is log(p / (1 - p)), as it is for one under a sigmoid by itself.
    """
    own = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    if not rivals or logits.shape[1] == 1:
        return own
    return own - (logits.sum(1) - own) / (logits.shape[1] - 1)
