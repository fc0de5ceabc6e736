"""The explaining sides of a worker's models, and the choice of the items for them (`workers.models.explaining`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import msgspec

from producers.wire.errors import InvalidInput
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving import served_models
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import REFERENCE
from workers.models.explaining import subject_lookup
from workers.settings import Settings

#: The suffix of an explaining side's name, after the name of its model.
SUFFIX = "/explain"

_CLASS = "workers.models.explaining.explaining_model:ExplainingModel"

#: The points of a step may cost this part of a micro-batch: in fp32, forward and back, they take about its time.
_STEP_SHARE = 4

#: The device has at most this many explanations at once.
_ROWS = 8


def side(settings: Settings, wanted: ModelToLoad, served: ServedModel) -> tuple[ModelToLoad, ServedModel] | None:
    """Return the explaining side of a model that `served_models.serve` returned, if it has one."""
    chosen = settings.models[wanted.name].explain
    if chosen == "off" or served.model.explains or subject_lookup.of(served.model) is None:
        return None
    options = {
        "class": wanted.class_,
        "options": wanted.options,
        "step_cost": max(1, served.budget.cost // _STEP_SHARE),
        "preloaded": chosen == "preloaded",
    }
    own = msgspec.structs.replace(wanted, class_=_CLASS, name=wanted.name + SUFFIX, options=options, backend=REFERENCE)
    model = served_models.build(own)
    # bounded by rows alone: the device holds no more of each than a step needs
    return own, ServedModel(model, model.revision, Budget(sys.maxsize, _ROWS))


def way(models: Mapping[str, ServedModel], name: str, params: Iterable[msgspec.Struct]) -> str:
    """Return the name of the model for an item of model `name`: the explaining side, if one of its tasks asks for an
    explanation.

    Raises InvalidInput if the model has none.
    """
    if models[name].model.explains or not any(getattr(own, "explain", False) for own in params):
        return name
    if name + SUFFIX not in models:
        raise InvalidInput("params", f"the model {name!r} explains nothing here", "leave out `explain`")
    return name + SUFFIX
