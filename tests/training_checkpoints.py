"""The checkpoints of trainings, put together from the parts of their processes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from workers.training.loop import training_checkpoint
from workers.training.loop.training_checkpoint import SavedBest

#: By how much weights may differ after some steps in which the same numbers were added up in another order, as a share
#: of their tensor's largest value.
TOLERANCE = 1e-5

#: Parameters whose gradient is rounding alone, since they shift all inputs of a softmax alike, and whose value may be 0
#: therefore: for these, the tolerance is absolute.
_SHIFTS = ("key.bias", "qa_outputs.bias", "queries.bias", "k_lin.bias", "k_proj.bias")

#: Parameters that begin at 0 are smaller than this after some steps, and their steps are largely rounding.
_SMALL = 0.05


def last(out: Path) -> dict[str, torch.Tensor]:
    """Return all that the last checkpoint has of a training: its weights, and the optimiser's averages."""
    saved = training_checkpoint.read(out)
    assert saved is not None
    return _whole(out / saved.folder)


def best(out: Path) -> dict[str, torch.Tensor]:
    """Return the best weights of a training."""
    return _whole(out / msgspec.json.decode((out / training_checkpoint.BEST).read_bytes(), type=SavedBest).folder)


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    reader = HuggingFaceStorageReader(str(folder))
    found = {name: torch.empty(about.size) for name, about in reader.read_metadata().state_dict_metadata.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is one process
        checkpoint.load(found, storage_reader=reader, no_dist=True)
    return found


def furthest(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """Return the largest difference of two trainings' weights, as a share of a tensor's largest value, and its name."""
    assert some.keys() == others.keys()
    return max(
        (_difference(name, own, others[name]), name) for name, own in some.items() if name.startswith("network/")
    )


def _difference(name: str, own: torch.Tensor, other: torch.Tensor) -> float:
    largest = 1.0 if name.endswith(_SHIFTS) else max(_SMALL, float(own.abs().max()))
    return float((own - other).abs().max()) / largest
