"""Rows computed by a model outside of a fleet, for Ray Data and others that bring rows and take results themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, ConfigurationError, InvalidInput
from producers.wire.forms import FILES
from producers.wire.messages import VERSION, Envelope, Item, Priority, new_id
from results_store.records import Result, ResultState
from results_store.store import Store
from workers import settings as settings_
from workers.batching.serving import served_models
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.batching.work import Group
from workers.device import devices
from workers.envelope import outcomes
from workers.envelope.input_limits import InputLimits
from workers.envelope.preparation import Preparation, PreparedItem
from workers.fleet.single_model import running
from workers.models.decoding.decoder_pool import DecoderPool

#: The rows that are prepared together, while the device computes those before.
TOGETHER = 256


class PredictorStopped(ArgosyError):
    """The device is out of service, and rows were not computed."""


class Predictor:
    """Computes batches of rows with a model of a ``fleet.toml``: prepared, batched, checked, finished as by a worker.

    An object is called with a batch, as an actor of Ray Data's ``map_batches`` is: a mapping of columns (of lists,
    arrays or Series), a table of Arrow or a data frame of pandas. It returns an Arrow table with the columns of the
    fleet's Parquet files, a row for each of the batch's rows and each task, in their order. A row that fails has the
    state ``failed`` and its error; the others are computed. `seq` counts within the batch; `key` is from the key's
    column.

    The model loads at the start, in a device process that ends with the object, or by `close`. Calls are not for
    several threads at once. Nothing is stored. Needs pyarrow: ``pip install 'argosy[parquet,worker]'``.
    """

    def __init__(
        self,
        model: str,
        *,
        tasks: Collection[str] = (),
        params: Mapping[str, Mapping[str, Any]] | None = None,
        input_column: str = "input",
        key_column: str | None = None,
        config: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        """Load a model. It must have been pulled on this machine (`argosy models pull`).

        `tasks` are some of the model's (empty: all), `params` their parameters by task. `config` is the ``fleet.toml``
        (default: ``$ARGOSY_FLEET``, or the built-in models alone), `device` a device's name, as ``cpu`` or ``cuda:0``
        (default: the first that a worker would take). Raises ConfigurationError, InvalidInput or PredictorStopped.
        """
        from results_store.export import parquet_export  # raises if pyarrow is missing

        settings = settings_.load(config)
        self._table_of = parquet_export.table_of
        self._model, self._input, self._key = model, input_column, key_column
        self._tasks = _tasks(settings.catalogue.tasks, model, tasks)
        self._params = {task: dict(own) for task, own in (params or {}).items()}
        for name in self._params:
            if name not in self._tasks:
                raise ConfigurationError(f"params.{name}: is not one of the tasks {', '.join(self._tasks)}")
        self._catalogue = settings.catalogue
        for name, task in self._tasks.items():
            self._catalogue.check_params(task, self._params.get(name, {}), field=f"params.{name}")
        on = devices.select(settings.worker.profile, (device,) if device else settings.worker.devices)[0]
        wanted, served = served_models.serve(settings, model, on)
        self._running = ExitStack()
        self._preparation = Preparation(
            offer=CurrentVersions(OfferedVersions(settings.catalogue, {model: served})),
            limits=InputLimits(**settings.limits.of_inputs),
            database=Store("sqlite:///nothing-is-stored.db"),  # never opened: only steps of pipelines are read from it
            decoders=self._decoders(settings),
        )
        self._batcher = self._running.enter_context(running(settings, wanted, served, on, name="predictor"))
        if reason := self._batcher.out_of_service:
            self.close()
            raise PredictorStopped(f"{model}: {reason}")

    def __call__(self, batch: Any) -> Any:
        """Return the results of a batch's rows as an Arrow table. Raises PredictorStopped or InvalidInput."""
        inputs = _column(batch, self._input)
        keys = [None] * len(inputs) if self._key is None else [str(key) for key in _column(batch, self._key)]
        running_: list[tuple[Envelope, list[PreparedItem], Group]] = []
        for start in range(0, len(inputs), TOGETHER):
            end = start + TOGETHER
            envelope, refused = self._envelope(start, inputs[start:end], keys[start:end])
            items = self._preparation.prepare_items(envelope, envelope.items, self._preparation.derivation("", ()))
            items += [PreparedItem(row.item, row.results) for row in refused]
            running_.append((envelope, items, self._batcher.submit([one.entry for one in items if one.entry])))
        results: list[Result] = []
        for envelope, items, group in running_:
            group.wait()
            results += self._preparation.finish_items(envelope, items)
        if len(results) < len(inputs) * len(self._tasks):
            why = self._batcher.out_of_service or "it was closed"
            raise PredictorStopped(f"{self._model}: {why}; {len(inputs):,} rows are to be computed again")
        order = {name: place for place, name in enumerate(self._tasks)}
        return self._table_of(sorted(results, key=lambda row: (row.seq, order[row.task])))

    def close(self) -> None:
        """End the device process."""
        self._running.close()

    def __del__(self) -> None:
        if "_running" in self.__dict__:  # its making may have failed
            self.close()

    def _decoders(self, settings: settings_.Settings) -> DecoderPool | None:
        """Start processes that decode files, several at once, and may be killed; None if no task takes files."""
        if not any(task.kind.modality in FILES for task in self._tasks.values()):
            return None
        environment = devices.pinned_environment(devices.cpu(), os.environ, threads=1)
        pool = DecoderPool(settings.limits.of_decoding, environment, cores=devices.available_cores())
        self._running.callback(pool.close)
        pool.start()
        pool.wait_until_started()
        return pool

    def _envelope(
        self, first: int, inputs: Sequence[Any], keys: Sequence[str | None]
    ) -> tuple[Envelope, list[PreparedItem]]:
        """Return rows as an envelope, which is the unit of preparation, and those that are refused."""
        task = next(iter(self._tasks.values()))  # all take inputs of the same form
        make = partial(
            Envelope,
            version=VERSION,
            id=new_id(),
            job="",
            model=self._model,
            priority=Priority.BULK,
            queued_at=time.time(),
            durable=False,
        )
        items, refused, nothing = [], [], make(items=())
        for seq, (value, key) in enumerate(zip(inputs, keys, strict=True), first):
            item = Item(seq, "", tuple(self._tasks), self._params, key)
            try:
                given = self._catalogue.check_input(task, value, field=self._input)
                items.append(Item(seq, given, item.tasks, item.params, key))
            except InvalidInput as error:
                failed = outcomes.ended(nothing, item, ResultState.FAILED, outcomes.described(error))
                refused.append(PreparedItem(item, failed))
        return make(items=tuple(items)), refused


def _tasks(known: Mapping[str, Task], model: str, wanted: Collection[str]) -> dict[str, Task]:
    """Return the tasks by name. Raises ConfigurationError."""
    own = {name: task for name, task in known.items() if task.model == model}
    if isinstance(wanted, str):
        raise ConfigurationError(f"tasks: must be a list of names; write [{wanted!r}]")
    for name in wanted:
        if name not in own:
            raise ConfigurationError(f"tasks: {name!r} is not a task of {model!r}; it has {', '.join(own) or 'none'}")
    found = {name: own[name] for name in (wanted or own)}
    if files := [name for name, task in found.items() if task.kind.makes_files]:
        raise ConfigurationError(f"tasks: {files[0]!r} makes files, which need a fleet; name other tasks")
    if len({task.kind.modality for task in found.values()}) > 1:
        raise ConfigurationError(f"tasks: those of {model!r} take inputs of several forms; name tasks of one form")
    return found


def _column(batch: Any, name: str) -> list[Any]:
    """Return a column of a batch as Python values. Raises InvalidInput."""
    names = getattr(batch, "column_names", None) or list(batch)
    if name not in names:
        raise InvalidInput(name, "is not a column of the batch", f"its columns are: {', '.join(map(str, names))}")
    found = batch[name]
    for method in ("to_pylist", "tolist"):  # Arrow's; NumPy's and pandas'
        if hasattr(found, method):
            return list(getattr(found, method)())
    return list(found)
