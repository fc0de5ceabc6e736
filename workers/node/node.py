"""A worker node: everything that a device's worker holds, started and stopped in order.

Start: models located → store → decoding processes → device process and batcher → periodic duties. The Celery consumer
starts only after these, so that no envelope is taken before it can run. On a stop, `drain` lets running envelopes
finish within the grace period; the rest goes back to its queue.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from producers.wire.blobs import Blobs
from producers.wire.errors import BrokerUnavailable, ConfigurationError, Overloaded
from producers.wire.forms import FILES
from producers.wire.messages import COLUMNS, Priority, named
from producers.wire.outside.allowed_places import AllowedPlaces
from producers.wire.pipelines.following import follow
from producers.wire.publisher import Publisher
from producers.wire.result_files import ResultFiles, place_of_files
from producers.wire.tracing import spans
from producers.wire.training.training_job import TRAINING
from results_store.errors import StoreError
from results_store.loops.log_lines import about
from results_store.loops.loop import TICK_S, ThreadProgress, doing, note, watch_here
from results_store.records import Batch, Declaration
from results_store.store import Store
from results_store.writer import Writer
from workers.batching.batcher import Batcher, BatcherSettings
from workers.batching.feeder import PROCESS_LIMIT_S
from workers.batching.planning.residence import Residence
from workers.batching.roster import ServedModel
from workers.batching.saved_costs import SavedCosts, SavedFootprints
from workers.batching.serving.offered_versions import CurrentVersions, OfferedVersions
from workers.device.device_client import ProcessDevice
from workers.device.devices import Device, available_cores, cpu, pinned_environment
from workers.envelope.execution import Execution
from workers.envelope.gate import Gate
from workers.envelope.input_limits import InputLimits
from workers.envelope.preparation_turns import STEP_LIMIT_S
from workers.envelope.streams import Item, Streams
from workers.models.decoding.decoder_pool import DecoderPool
from workers.models.interface.class_calls import ClassCalls
from workers.models.interface.model import Model
from workers.models.sources import model_source
from workers.node import declared_settings, presence
from workers.node.done_notices import DoneNotices
from workers.node.follow_up_envelopes import MARK_EVERY_S, FollowUpPublisher
from workers.node.held_envelopes import HeldEnvelopes
from workers.node.intake import Intake, SharedIntake, Unbounded
from workers.node.lanes import LOOK_EVERY_S, Lanes
from workers.node.monitoring.worker_figures import WorkerFigures
from workers.node.paused_work import LOOK_EVERY_S as PAUSES_EVERY_S
from workers.node.paused_work import PausedWork
from workers.node.peers import EXCHANGE_EVERY_S, Peers
from workers.node.periodic_duties import PeriodicDuties
from workers.node.presence import TELL_EVERY_S, ModelState, NodeState
from workers.node.reconciler import Reconciler
from workers.node.reloading import LOOK_EVERY_S as RELOADS_EVERY_S
from workers.node.reloading import Reloader, Version, versions
from workers.node.scheduling.scheduled_submissions import LOOK_EVERY_S as SCHEDULES_EVERY_S
from workers.node.scheduling.scheduled_submissions import ScheduledSubmissions, environment_of
from workers.node.thread_turns import ThreadTurns
from workers.node.training.training_intake import TrainingIntake
from workers.node.training.trainings import Trainings, TrainingTimes
from workers.node.watchdog import Watchdog, end_process, limit_for
from workers.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between writes of the learned costs; they are also written at the end.
KEEP_COSTS_EVERY_S = 60.0

#: Seconds between purges of jobs whose time to live is over.
PURGE_EVERY_S = 600.0

#: The most seconds for a purge; its transactions are short.
PURGE_LIMIT_S = 3600.0


class DeviceOutOfService(ConfigurationError):
    """The device does not start; `str()` has its message."""


class Node:
    """The worker of a device. `on_out_of_service` is called once, if the device is given up while the node runs.

    `on_end` is called just before the watchdog ends the process.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        *,
        name: str,
        broker_url: str,
        store_url: str,
        on_out_of_service: Callable[[str], None] = logger.error,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        # new at each start: a predecessor of the same name that was stalled must not release this node's leases
        holder = f"{name}#{os.getpid()}-{secrets.token_hex(4)}"
        self.settings = settings
        self.device = device
        self.models = settings.served
        self._catalogue = settings.catalogue
        self._publisher = Publisher(broker_url)
        self._store = Store(store_url)
        self._held = HeldEnvelopes(self._store, worker=holder, lease_s=settings.worker.lease_s)
        self._figures = WorkerFigures(slots=settings.worker.concurrency)
        self._paused = PausedWork(self._store, self._held)
        self._scheduled = ScheduledSubmissions(
            self._store, environment_of(broker_url, store_url), settings.worker.schedules
        )
        self._gate = Gate()
        self._turns = ThreadTurns()
        self._following = FollowUpPublisher(self._store, self._publisher)
        batches: deque[Batch] = deque()
        self._writer = self._new_writer("argosy-writer", holder, batches)
        # SQLite has a single transaction at a time
        self._urgent_writer = (
            self._writer if self._store.sqlite else self._new_writer("argosy-urgent-writer", holder, batches)
        )
        self._writers = tuple(dict.fromkeys((self._writer, self._urgent_writer)))
        self._on_out_of_service = on_out_of_service
        self._on_end = on_end
        self.watchdog = Watchdog(limit_for(settings.worker.lease_s), self.end)
        self._trainings = self._new_trainings()
        #: The names of the queues: of the served models, and of trainings.
        self._served = (*self.models, *((TRAINING,) if self._trainings else ()))
        self.lanes = Lanes(self._store, self._served)
        self._batcher: Batcher | None = None
        self.intake: SharedIntake | None = None
        self._costs: SavedCosts | None = None
        self._footprints = SavedFootprints(model_source.cache_folder() / "footprints" / f"{_file_name(device)}.json")
        self._streams = Streams(self._publisher, self._drop_deserted)
        self._execution: Execution | None = None
        self._reloads: Reloader | None = None
        self._upkeep = PeriodicDuties()
        self._blobs = Blobs(settings.blobs)
        self._store_url = store_url
        self._files: ResultFiles | None = None
        self._schemas: dict[str, dict[str, Any]] = {}  # the descriptions of inputs that the store has
        environment = pinned_environment(cpu(), os.environ, threads=1)
        self.decoders = DecoderPool(settings.limits.of_decoding, environment, cores=available_cores())

    def start(self) -> None:
        """Start everything and return when the device is ready. `stop` ends all started parts, also if this fails.

        Raises ConfigurationError (models not pulled, no device), StoreUnavailable, SchemaMismatch.
        """
        self.watchdog.start()
        self._files = self._place_of_files()
        self._store.open()
        declarations = self._store.declarations.every()
        settings = declared_settings.established(self.settings, declarations)
        models = [version for name in self.models for version in versions(settings, name, self.device)]
        offer = CurrentVersions(OfferedVersions(settings.catalogue, {wanted.name: served for wanted, served in models}))
        if self._reads_files():
            self.decoders.start()  # they import their readers during the next steps
        self.lanes.look()
        self._paused.look_first()
        for writer in self._writers:
            writer.start()
            self.watchdog.watch_loop(writer.loop)
        self._costs = costs = self._kept_costs(offer.now.models)
        self._batcher = batcher = self._new_batcher(models, costs)
        batcher.start(self._new_device(batcher, models))  # the device loads its models during the next steps
        self.watchdog.watch_loop(batcher.loop)
        self._execution = self._new_execution(batcher, offer)
        self._streams.start()
        self.watchdog.watch_loop(self._streams.loop)
        batcher.came_up.wait()
        self._check_device(batcher)
        self.decoders.wait_until_started()
        batcher.weigh(self.lanes.tenants)
        self.lanes.follow(lambda: batcher.weigh(self.lanes.tenants))
        self._reloads = self._new_reloads(settings, declarations, batcher, costs, offer)
        self.intake = self._new_intake(batcher)
        self._describe()
        self._check_device(batcher)  # it may have gone since; from here on `_out_of_service` hears of it
        self._tell()  # a reload right after the start must wait for this node as well
        self._upkeep.start(self._duties(batcher, self._reloads))
        for loop in self._upkeep.loops:
            self.watchdog.watch_loop(loop)

    def run(self, raw: object, *, reply: bool = False, returned: int = 0) -> dict[str, Any]:
        """Run an envelope: the whole work of the Celery task. See `Execution.run`. Raises InvalidMessage.

        Workers have `returned` the message so many times.
        """
        assert self._execution is not None, "the consumer starts after the node"
        message = named(raw)
        urgent = message.priority == Priority.INTERACTIVE
        progress = ThreadProgress(threading.current_thread().name)
        progress.note(f"envelope {message.id}", STEP_LIMIT_S)
        watch_here(progress)
        self.watchdog.watch(progress)
        try:
            with (
                self._turns.taking(urgent=urgent),
                about(job=message.job, envelope=message.id, **spans.ids()),
                self._figures.counting(),
                self._held.taking(message.id, message.job, returned=returned, urgent=urgent) as held,
            ):
                summary: dict[str, Any] = {"skipped": "held"}
                if held is not None and message.model == TRAINING and self._trainings:
                    summary = self._trainings.run(message, held)
                elif held is not None:
                    summary = self._execution.run(raw, reply=reply, on_submit=partial(self._held.submitted, held))
                self._figures.ended(summary)
                return summary
        finally:
            self.watchdog.leave(progress)
            watch_here(None)

    def end(self, reason: str) -> None:
        """Give all leases up and end this process at once, whatever state its threads are in."""
        end = presence.NodeEnd(self.name, reason, time.time())
        steps: list[Callable[[], object]] = [self._on_end, lambda: presence.tell_end(self._publisher, end)]
        steps.append(self._held.give_up_leases)
        end_process(f"{self.name}: {reason}", [*([self._batcher.kill] if self._batcher else []), *steps])

    def drain(self, grace_s: float) -> None:
        """Wait until no envelope is held, or for `grace_s`; then interrupt the rest without counting an attempt.

        A database that is away is then no longer waited for: results that it lacks are computed again.
        """
        if self._trainings:
            self._trainings.stop()
        with doing("waiting for the held envelopes", grace_s + TICK_S):
            self._held.wait_until_none(grace_s)
        # the batcher may be sending a batch, which has its own limit
        with doing("the end of the device process", PROCESS_LIMIT_S + 2 * self.settings.worker.batch_timeout_s):
            self._interrupt()
        for writer in self._writers:
            writer.give_up()

    def stop(self) -> None:
        """Stop everything. Envelopes that are still held are interrupted and go back to their queue."""
        self._interrupt()  # first: a model that is loading must not delay the periodic duties' end
        self._upkeep.stop()
        self._scheduled.stop()
        self._keep_costs()
        with suppress(BrokerUnavailable, Overloaded):
            presence.leave(self._publisher, self.name)
            if self.intake:
                self.intake.leave()
        self._streams.stop()
        for writer in self._writers:
            writer.close()
        with suppress(StoreError):  # unmarked envelopes may be sent twice, which does no harm
            self._following.mark()
        self.watchdog.stop()
        self._store.close()
        self._publisher.close()

    def _interrupt(self) -> None:
        if self._trainings:
            self._trainings.stop()
        self._gate.close()
        self.decoders.close()
        if self._batcher:
            self._batcher.stop()

    # --- its parts ---

    def _check_device(self, batcher: Batcher) -> None:
        if batcher.out_of_service:
            raise DeviceOutOfService(f"{self.device.name}: out of service: {batcher.out_of_service}")

    def _reads_files(self) -> bool:
        """Return whether a served model has a task whose inputs are files, which are decoded in processes.

        A model that is added later starts these with its first item.
        """
        return any(task.model in self.models and task.kind.modality in FILES for task in self._catalogue.tasks.values())

    def _place_of_files(self) -> ResultFiles | None:
        """Return the place of result files; None if there is no place and no task that needs it."""
        try:
            return ResultFiles(place_of_files(self.settings.blobs, self._store_url))
        except ConfigurationError as error:
            tasks = [task for task in self._catalogue.tasks.values() if task.model in self.models]
            if needy := [task.name for task in tasks if task.kind.makes_files]:
                raise ConfigurationError(f"task {needy[0]!r}: {error}") from error
            return None

    def _new_writer(self, name: str, holder: str, batches: deque[Batch]) -> Writer:
        worker = self.settings.worker
        return Writer(
            self._store,
            worker=holder,
            lease_s=worker.lease_s,
            max_attempts=worker.max_attempts,
            drop_inputs=worker.drop_inputs,
            on_committed=DoneNotices(self._publisher).announce,
            follow=follow,
            on_followed=self._following.publish,
            name=name,
            batches=batches,
        )

    def _kept_costs(self, served: Mapping[str, ServedModel]) -> SavedCosts:
        file = model_source.cache_folder() / "costs" / f"{_file_name(self.device)}.json"
        threads = self.settings.worker.threads or available_cores()
        revisions = {name: model.revision for name, model in served.items()}
        return SavedCosts(file, revisions, f"{self.device.description}, {threads} threads")

    def _residence(self, models: Sequence[Version]) -> Residence:
        residence = Residence(self.settings.worker.memory_budget_bytes)
        for wanted, served in models:
            takes = self._footprints.of(served.key, served.name, served.revision, Path(wanted.folder))
            residence.add(served.key, takes)
        return residence

    def _new_batcher(self, models: Sequence[Version], costs: SavedCosts) -> Batcher:
        worker = self.settings.worker
        return Batcher(
            {wanted.name: served for wanted, served in models},
            BatcherSettings(
                worker=self.name,
                device=self.device.name,
                load_timeout_s=worker.load_timeout_s,
                batch_timeout_s=worker.batch_timeout_s,
                guaranteed_shares=self.settings.guaranteed_shares,
                promised_wait_s=self.settings.promised_wait_s,
            ),
            on_batch=self._writer.record,
            on_out_of_service=self._out_of_service,
            costs=costs.read(),
            residence=self._residence(models),
            crowded_s=self._held.crowded_s,
        )

    def _new_intake(self, batcher: Batcher) -> SharedIntake:
        peers = Peers(self._publisher, self.name)
        return SharedIntake(self._held, batcher, peers, self._publisher, self.models, lambda: self.lanes.numbers)

    def _new_trainings(self) -> Trainings | None:
        worker = self.settings.worker
        if not worker.trainings:
            return None
        if self.device.pinned is not None:
            logger.warning("worker.trainings: %s trains nothing; trainings need the CPU or a GPU", self.device.name)
            return None
        return Trainings(
            node=self.name,
            folders=worker.trainings,
            device=self.device,
            threads=worker.threads,
            held=self._held,
            writer=self._writer,
            store=self._store,
            publisher=self._publisher,
            paused=lambda: self._paused.subjects,
            times=TrainingTimes(stop_s=max(1.0, worker.grace_s)),
        )

    @property
    def taking(self) -> Intake:
        """The choice of the lists from which envelopes are taken."""
        usual = self.intake or Unbounded()
        return TrainingIntake(usual, self._trainings.may_take) if self._trainings else usual

    def _new_device(self, batcher: Batcher, models: Sequence[Version]) -> ProcessDevice:
        worker = self.settings.worker
        measuring = bool(worker.memory_budget_bytes)
        return ProcessDevice(
            self.device,
            [wanted for wanted, _ in models],
            batcher.tell,
            threads=worker.threads,
            measuring=measuring,
            frame_timeout_s=worker.batch_timeout_s,
            on_reader=self.watchdog.watch_loop,
        )

    def _new_execution(self, batcher: Batcher, offer: CurrentVersions) -> Execution:
        return Execution(
            offer=offer,
            limits=InputLimits(**self.settings.limits.of_inputs, blobs=self._blobs),
            batcher=batcher,
            writer=self._writer,
            urgent_writer=self._urgent_writer,
            gate=self._gate,
            database=self._store,
            streams=self._streams,
            files=self._files,
            calls=ClassCalls(self.settings.worker.batch_timeout_s),
            decoders=self.decoders,
            retries=self.settings.retry,
            cache=self.settings.result_cache,
            paused=lambda: self._paused.subjects,
        )

    def _new_reloads(
        self,
        settings: Settings,
        declarations: Mapping[str, Declaration],
        batcher: Batcher,
        costs: SavedCosts,
        offer: CurrentVersions,
    ) -> Reloader:
        return Reloader(
            settings,
            declarations,
            file=self.settings,
            device=self.device,
            store=self._store,
            batcher=batcher,
            costs=costs,
            footprints=self._footprints,
            offer=offer,
            on_change=self._on_reload,
            makes_files=self._files is not None,
        )

    def _duties(self, batcher: Batcher, reloads: Reloader) -> dict[str, tuple[float, Callable[[], object]]]:
        """Return the periodic duties by name: (seconds between runs, function)."""
        worker = self.settings.worker
        reconciler = Reconciler(self._store, self._publisher, self._served, overdue_s=worker.publish_overdue_s)
        return {
            "leases": (worker.lease_s / 3, self._held.renew_leases),
            "cancellations": (worker.look_for_cancellations_every_s, lambda: self._held.drop_cancelled(batcher)),
            "tenants": (LOOK_EVERY_S, self.lanes.look),
            "pauses": (PAUSES_EVERY_S, lambda: self._paused.look(batcher)),
            "reloads": (RELOADS_EVERY_S, reloads.look),
            "presence": (TELL_EVERY_S, self._tell),
            "sharing": (EXCHANGE_EVERY_S, self._share),
            "following": (MARK_EVERY_S, self._following.mark),
            "schedules": (SCHEDULES_EVERY_S, self._scheduled.look),
            "reconciler": (worker.reconcile_every_s, reconciler.run),
            "retention": (PURGE_EVERY_S, self._purge),
            "costs": (KEEP_COSTS_EVERY_S, self._keep_costs),
        }

    # --- its periodic duties ---

    def _keep_costs(self) -> None:
        if self._batcher and self._costs:
            self._costs.write(self._batcher.costs)
            if self._batcher.residence.budget_bytes:  # without a budget nothing is measured
                self._footprints.write(self._batcher.residence.measured)

    def state(self) -> NodeState | None:
        """The models served here now; None before the start is complete."""
        if self._batcher is None or self._reloads is None:
            return None
        residence = self._batcher.residence
        trained = {TRAINING: ModelState(revision="recipes")} if self._trainings else {}
        return NodeState(
            name=self.name,
            device=self.device.name,
            models={name: self._with_columns(name, state) for name, state in self._reloads.states.items()} | trained,
            loaded=sorted({*(key.partition("#")[0] for key in residence.loaded), *trained}),
            resident_bytes=residence.resident_bytes,
            budget_bytes=residence.budget_bytes,
            loads=residence.loads,
            unloads=residence.unloads,
            reads=COLUMNS,
            lanes=self.lanes.numbers,
            host=platform.node(),
            schedules=list(AllowedPlaces(self.settings.worker.schedules).resolved),
            at=time.time(),
            figures=self._figures.now(self._held, self._batcher, self._writers, self.watchdog),
        )

    def _with_columns(self, name: str, state: ModelState) -> ModelState:
        """Return a model's state with the most texts of an envelope in columns, if the model makes blocks of them."""
        assert self._execution is not None, "the node has started"
        served = self._execution.offer.now.models.get(name)
        if self.intake is None or served is None or type(served.model).prepare_block is Model.prepare_block:
            return state
        return msgspec.structs.replace(state, in_columns=self.intake.in_columns(name))

    def _on_reload(self) -> None:
        with suppress(StoreError):  # the next reload or start describes the models again
            self._describe()
        self._tell()

    def _describe(self) -> None:
        """Keep the models' descriptions of their inputs in the store, where clients read them.

        Raises StoreUnavailable.
        """
        assert self._execution is not None, "made before"
        offer = self._execution.offer.now
        for name in self.models:
            schemas = offer.models[name].model.declared_schemas()
            if schemas is not None and self._schemas.get(name) != schemas:
                self._store.declarations.describe(name, schemas)
                self._schemas[name] = schemas

    def _tell(self) -> None:
        """Publish the served models. They only inform people, so the next announcement makes up for a lost one."""
        if state := self.state():
            with suppress(BrokerUnavailable, Overloaded):
                presence.tell(self._publisher, state)

    def _share(self) -> None:
        if self.intake and (count := self.intake.share()):
            logger.info("%d envelopes go back to their queues: other nodes end them sooner", count)

    def _drop_deserted(self, item: Item) -> None:
        job, seq = item
        logger.info("item %d of job %s has no listener any more; it is cancelled", seq, job, extra={"job": job})
        if self._batcher:
            self._batcher.cancel(items=[item])

    def _purge(self) -> None:
        note("purging", PURGE_LIMIT_S)
        self._store.retention.purge()
        self._store.retention.purge_audit(older_than_s=86400 * self.settings.worker.audit_days)
        if self.settings.worker.drop_inputs:
            self._store.retention.drop_inputs_of_pipelines()
        if self.settings.result_cache.tasks:
            self._store.cached_results.forget(keep_s=self.settings.result_cache.keep_s)
        self._blobs.sweep(self._store.retention.with_inputs)
        if self._files:
            self._files.sweep(self._store.retention.existing)

    def _out_of_service(self, reason: str) -> None:
        if self._reloads is not None:
            self._on_out_of_service(f"{self.device.name} is out of service: {reason}")


def _file_name(device: Device) -> str:
    return device.name.replace(":", "-")
