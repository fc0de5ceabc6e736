"""The state that all models of a device process share; a user's own class must not change it for the others."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from workers.models.interface.returned import is_own

logger = logging.getLogger(__name__)

#: A value's name, its current value, and the function that sets it.
_Value = tuple[Any, Callable[[Any], object]]

#: The values (class, name) that were logged.
_logged: set[tuple[type, str]] = set()


@contextmanager
def restored(model: object, method: str) -> Iterator[None]:
    """Restore the state after a call of an own class's method. A change is logged once."""
    if not is_own(model):
        yield
        return
    before = _values()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        now = _values()
        for name, (value, restore) in before.items():
            if now[name][0] != value:
                restore(value)
                _log(type(model), method, name)


def _values() -> Mapping[str, _Value]:
    found: dict[str, _Value] = {
        "the working directory": (Path.cwd(), os.chdir),
        "NumPy's handling of errors": (np.geterr(), lambda value: np.seterr(**value)),
    }
    if torch := sys.modules.get("torch"):
        found |= {
            "torch's default type": (torch.get_default_dtype(), torch.set_default_dtype),
            "torch's default device": (torch.get_default_device(), lambda _: torch.set_default_device(None)),
            "torch's number of threads": (torch.get_num_threads(), torch.set_num_threads),
            "torch's recording of gradients": (torch.is_grad_enabled(), torch.set_grad_enabled),
            "torch's choice of deterministic algorithms": (
                torch.are_deterministic_algorithms_enabled(),
                torch.use_deterministic_algorithms,
            ),
        }
    return found


def _log(class_: type, method: str, name: str) -> None:
    if (class_, name) not in _logged:
        _logged.add((class_, name))
        logger.warning("%s.%s changed %s, which all models share; it was restored", class_.__name__, method, name)
