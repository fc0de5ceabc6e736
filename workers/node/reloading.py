"""Load declared versions of models in a running node: the new version is loaded beside the old, then replaces it.

The order: the new version is loaded while the old version works; new items are prepared for the new version; items that
waited for the old one are prepared again; the old version finishes the batches on its device; the old version is
unloaded. If the new version cannot be loaded, the old version stays untouched. Models that read its weights (`uses`)
change with it: all or none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from producers.wire.errors import ConfigurationError
from results_store.loops.loop import TICK_S, note
from results_store.records import Declaration
from results_store.store import Store
from workers.batching.batcher import Batcher
from workers.batching.roster import CannotLoad, ServedModel
from workers.batching.saved_costs import SavedCosts, SavedFootprints
from workers.batching.serving import served_explainers, served_models
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.interface import class_code
from workers.node import declared_settings
from workers.node.presence import ModelState
from workers.settings import ModelSettings, Settings

logger = logging.getLogger(__name__)

#: Seconds between looks for declarations.
LOOK_EVERY_S = 1.0

#: The most seconds for reading a new version's files and, for `backend` ``auto``, measuring its backends.
CHOICE_LIMIT_S = 3600.0

Version: TypeAlias = tuple[ModelToLoad, ServedModel]


def versions(settings: Settings, name: str, device: Device, generation: int = 0) -> list[Version]:
    """Return a model and its explaining side, if any, for device process and batcher. Raises ConfigurationError."""
    model = served_models.serve(settings, name, device)
    side = served_explainers.side(settings, *model)
    return [(wanted, replace(served, generation=generation)) for wanted, served in ([model, side] if side else [model])]


def _check_code(new: Sequence[Version]) -> None:
    """Raise ConfigurationError if a class's code has changed since this process imported it."""
    for wanted, served in new:
        if class_code.changed(type(served.model)):
            problem = "has other code now than when this worker imported it, and a reload takes only settings and files"
            raise ConfigurationError(f"models.{served.name}.class: {wanted.class_} {problem}; restart the worker")


class Reloader:
    """Reloads the models of a node. Call `look` from a single thread.

    `settings` are those that the node started with, by the declarations `started`; `file` are the settings of its file.
    """

    def __init__(
        self,
        settings: Settings,
        started: Mapping[str, Declaration],
        *,
        file: Settings,
        device: Device,
        store: Store,
        batcher: Batcher,
        costs: SavedCosts,
        footprints: SavedFootprints,
        offer: CurrentVersions,
        on_change: Callable[[], object],
        makes_files: bool,
    ) -> None:
        self._file = file
        self._settings = settings
        self._device = device
        self._store = store
        self._batcher = batcher
        self._costs = costs
        self._footprints = footprints
        self._offer = offer
        self._on_change = on_change
        self._makes_files = makes_files
        self._switches = 0
        # an unproven declaration is still to come: the node started with the previous one
        self._taken = {name: one.generation - (0 if one.proven else 1) for name, one in started.items()}
        self.states = {
            name: ModelState(revision=served.revision, generation=self._taken.get(name, 0))
            for name, served in offer.now.models.items()
            if name in settings.models
        }

    def look(self) -> None:
        """Load declarations that were not taken yet. Raises StoreUnavailable."""
        for name, declaration in self._store.declarations.every().items():
            if name not in self.states:
                continue
            if declaration.generation > self._taken.get(name, 0):
                self._taken[name] = declaration.generation
                self._take(declaration)
            if not declaration.proven and self._serves(declaration):
                self._store.declarations.prove(declaration)

    def _serves(self, declaration: Declaration) -> bool:
        state = self.states[declaration.model]
        return state.generation == declaration.generation and state.state == "serving"

    def _take(self, declaration: Declaration) -> None:
        name, generation = declaration.model, declaration.generation
        self._note(name, generation=generation, state="loading", error="")
        logger.info("model %s: taking declaration %d", name, generation)
        try:
            self._switch(name, declaration)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new version, the old one keeps serving
            logger.warning("model %s stays unchanged: %s", name, error)
            self._note(name, state="failed", error=str(error))
            return
        models = self._offer.now.models
        self.states = {
            own: msgspec.structs.replace(state, revision=models[own].revision) for own, state in self.states.items()
        }
        logger.info("model %s: now serving %s", name, models[name].revision)
        self._note(name, state="serving")

    def _switch(self, name: str, declaration: Declaration) -> None:
        base = self._settings if declaration.settings is not None else self._settings_of_file(name)
        settings = declared_settings.with_model(base, name, declaration.settings)
        self._check(settings, name)
        note(f"preparing a new version of {name}", CHOICE_LIMIT_S)
        self._switches += 1  # a new key each time: one of a failed switch may not be unloaded yet
        new = versions(settings, name, self._device, self._switches)
        _check_code(new)
        if self._is_served(new, settings.models[name]):
            self._settings = settings
            return
        for reader in self._readers(settings, name):
            own = versions(settings, reader, self._device, self._switches)
            if own[0][1].revision != self._offer.now.models[reader].revision:
                new += own
        self._admit(new)
        self._settings = settings
        self._replace(new)

    def _readers(self, settings: Settings, name: str) -> list[str]:
        """Return the models served here that read a model's weights, directly or through another."""
        found = [name]
        for one in found:  # the list grows in the loop
            found += [other for other in self.states if one in settings.used_by(other) and other not in found]
        return found[1:]

    def _replace(self, new: Sequence[Version]) -> None:
        """Replace old versions by new ones, and return when the old ones are unloaded."""
        before = self._offer.now.models
        switched = {served.name.removesuffix(served_explainers.SUFFIX) for _, served in new}
        old = {own: served for own, served in before.items() if own.removesuffix(served_explainers.SUFFIX) in switched}
        for _, served in new:
            self._costs.follow(served.key, served.name, served.revision)
        models = {own: served for own, served in before.items() if own not in old}
        self._offer.now = OfferedVersions(self._settings.catalogue, models | {served.name: served for _, served in new})
        for retired in [self._batcher.retire(served.key) for served in old.values()]:
            self._await(retired)

    def _is_served(self, new: Sequence[Version], chosen: ModelSettings) -> bool:
        """Return whether the new version is the same: equal settings and unchanged files."""
        _, served = new[0]
        same = declared_settings.digest(chosen) == declared_settings.digest(self._settings.models[served.name])
        return same and served.revision == self._offer.now.models[served.name].revision

    def _settings_of_file(self, name: str) -> Settings:
        models = {**self._settings.models, name: self._file.models[name]}
        return msgspec.structs.replace(self._settings, models=models)

    def _check(self, settings: Settings, name: str) -> None:
        tasks = [task for task in settings.catalogue.tasks.values() if task.model == name]
        if not tasks:
            raise ConfigurationError(f"models.{name}.tasks: is empty; a model without tasks serves nothing")
        if not self._makes_files and (needy := [task.name for task in tasks if task.kind.makes_files]):
            raise ConfigurationError(
                f"models.{name}.tasks.{needy[0]}: needs a place for its files; set [blobs] url and restart the worker"
            )

    def _admit(self, new: Sequence[Version]) -> None:
        """Load all versions, or none."""
        admitted: list[ServedModel] = []
        try:
            for wanted, served in new:
                takes = self._footprints.of(served.key, served.name, served.revision, Path(wanted.folder))
                self._await(self._batcher.admit(served, wanted, takes))
                admitted.append(served)
        except Exception:
            for served in admitted:
                self._batcher.retire(served.key)
            raise

    def _await(self, done: Future[None]) -> None:
        """Wait for the batcher, which has its own progress. Raises CannotLoad."""
        while not wait([done], TICK_S).done:
            note()
            if self._batcher.out_of_service:
                raise CannotLoad(self._batcher.out_of_service)
        done.result()

    def _note(self, name: str, **changes: object) -> None:
        self.states[name] = msgspec.structs.replace(self.states[name], **changes)
        self._on_change()
