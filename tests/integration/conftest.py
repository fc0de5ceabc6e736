"""What tests of models share: checkpoints made once, and answers compared with those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Made = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes a checkpoint once: ``made(tiny.bert, num_labels=3)``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    there: dict[str, Path] = {}

    def make(maker: Callable[..., Path], *head: str, **config: Any) -> Path:
        wanted = repr((maker.__name__, head, config))
        if wanted not in there:
            there[wanted] = maker(folder / str(len(there)), *head, **config)
        return there[wanted]

    return make


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Tests share the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
