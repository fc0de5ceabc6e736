"""Every setting of a fleet, typed and checked once at start. In workers, only this module reads ``fleet.toml``.

The built-in models (``models/builtin.toml``) come first; a user's ``fleet.toml`` is merged over them table by table.
The environment names the broker and the store, or else the file, or else the running local fleet.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from producers.wire.blobs import BlobSettings
from producers.wire.catalogue import Catalogue, Limits, Task
from producers.wire.connection import AdmissionSettings, Connection, LogSettings, checked_url
from producers.wire.edge.edge_settings import EdgeSettings, edge_settings
from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import expanded, known, read_toml, typed
from producers.wire.forms import Redactable
from producers.wire.messages import Priority
from producers.wire.outside.allowed_places import AllowedPlaces
from producers.wire.training.training_job import TRAINING
from results_store.records import MAX_ATTEMPTS
from workers.models.decoding.decoding_limits import LEAST_MEMORY_BYTES, LEAST_PROCESSES, DecodingLimits
from workers.models.interface import class_lookup
from workers.result_cache_settings import ResultCacheSettings
from workers.retries import RetrySettings

logger = logging.getLogger(__name__)

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

#: The options of built-in classes that are paths, or tables of paths.
_PATHS = ("adapters", "heads", "indexes", "voice")

#: The class of models that name none.
_CHECKPOINT = "workers.models.huggingface:model_for"

#: A model's name is part of its queues' names, in which a slash separates the lanes.
_NAME = re.compile(r"[\w.@+-]+")

#: The most seconds of a setting, three years: Python's locks take no time without bound.
_MOST_S = 10**8

#: A host from which workers fetch: see `workers.envelope.input_limits.InputLimits`.
_HOST = re.compile(r"(https?://)?(\*\.)?[^\s/*@?#\[\]]+", re.IGNORECASE)

#: The producers' limits, which are the workers' defaults.
DEFAULT_LIMITS = Limits()

DEFAULT_DECODING = DecodingLimits()


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a worker node. Times are seconds.

    `profile` chooses the devices where `devices` names none. `models` are the served ones (none named: all with tasks).
    `concurrency` is the number of envelopes that a node holds at once: enough to leave free slots for interactive ones
    beside bulk. `threads` bounds the CPU threads of the device process (0: all cores). `memory_budget` ("6 GB") bounds
    the memory of a device process on its device: models are then loaded on demand, and the least recently used ones
    make room; without it all models are loaded at the start. `bulk_share` is the share of device time that bulk work
    keeps under interactive load. `interactive_wait_s` and `standard_wait_s` are the longest wait of such an item behind
    less urgent batches: while such items arrive, these batches are kept short enough. `max_attempts` is the number of
    attempts of an envelope that may end with an error before its items fail; deaths of workers do not count.
    `tune_at_start` lets a worker measure backends before
    its first start on a machine (`argosy tune` does it better). `drop_inputs` deletes inputs from the store once all
    their results have succeeded. `trainings` are the folders of the recipes that this node trains as jobs of the fleet
    (none named: it takes no trainings). `schedules` are the folders and the beginnings of URLs (``s3://logs/``) from
    which this node submits by the clock (none named: it runs no schedules).
    Entries of the audit log are deleted after `audit_days`.
    """

    profile: Literal["auto", "cpu", "gpu"] = "auto"
    devices: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    concurrency: int = 64
    threads: int = 0
    memory_budget: str = ""
    bulk_share: float = 0.1
    interactive_wait_s: float = 0.05
    standard_wait_s: float = 1.0
    lease_s: float = 60.0
    grace_s: float = 30.0
    load_timeout_s: float = 300.0
    batch_timeout_s: float = 120.0
    reconcile_every_s: float = 5.0
    look_for_cancellations_every_s: float = 1.0
    publish_overdue_s: float = 30.0
    max_attempts: int = MAX_ATTEMPTS
    tune_at_start: bool = True
    drop_inputs: bool = False
    trainings: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    audit_days: float = 365.0

    @property
    def memory_budget_bytes(self) -> int:
        """0 where there is no budget."""
        return _bytes(self.memory_budget)

    def __post_init__(self) -> None:
        _ = self.memory_budget_bytes
        AllowedPlaces(self.trainings).check("trainings", urls=False)
        AllowedPlaces(self.schedules).check("schedules")
        if not 1 <= self.concurrency <= 1024:
            raise ValueError("`concurrency` must be 1 to 1024")
        if not 0 <= self.bulk_share <= 0.9:  # the rest is for aged and for more urgent items
            raise ValueError("`bulk_share` must be 0 to 0.9")
        _at_least(self, 1, "max_attempts")
        _at_least(self, 0, "threads", "grace_s", "interactive_wait_s", "standard_wait_s")
        for name in self.__struct_fields__:
            if name.endswith("_s") and not getattr(self, name) <= _MOST_S:
                raise ValueError(f"`{name}` must be a number of seconds, at most {_MOST_S:,}")
        for name in (
            "lease_s",
            "load_timeout_s",
            "batch_timeout_s",
            "reconcile_every_s",
            "look_for_cancellations_every_s",
            "publish_overdue_s",
            "audit_days",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be over 0")
        if not self.audit_days <= _MOST_S / 86400:
            raise ValueError(f"`audit_days` must be a number of days, at most {_MOST_S // 86400:,}")


def _at_least(settings: msgspec.Struct, least: int, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= least:
            raise ValueError(f"`{name}` must be {least} or more")


def _bytes(text: str) -> int:
    """Return a size: a number with its unit, which is one of `_UNITS`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]i?B)", text.strip())
    if found is None and text:
        raise ValueError(f'`memory_budget` must be a size with its unit ({", ".join(_UNITS)}), as "6 GB"; not {text!r}')
    size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if size >= 2**63:
        raise ValueError("`memory_budget` is more than any device has")
    return int(size)


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of inputs, checked at the worker: the fields of `workers.envelope.input_limits.InputLimits`, and those of
    `workers.models.decoding.decoding_limits.DecodingLimits`.

    `redact` is for clients alone.
    """

    max_text_chars: int = DEFAULT_LIMITS.max_text_chars
    max_input_bytes: int = DEFAULT_LIMITS.max_input_bytes
    redact: tuple[Redactable, ...] = ()
    allowed_roots: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    fetch_timeout_s: float = 20.0
    max_redirects: int = 3
    decode_s: float = DEFAULT_DECODING.decode_s
    decode_memory_bytes: int = DEFAULT_DECODING.decode_memory_bytes
    decode_processes: int = DEFAULT_DECODING.decode_processes

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_text_chars", "max_input_bytes")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                forms = "host, host:port or *.domain, with http:// in front for plain http"
                raise ValueError(f"`allowed_hosts` has {host!r}, which no URL is on; write {forms}")
        if any(not root.strip() for root in self.allowed_roots):
            raise ValueError("`allowed_roots` has an empty path; name a folder, or leave it out")
        _at_least(self, 0, "max_redirects")
        _at_least(self, LEAST_MEMORY_BYTES, "decode_memory_bytes")
        for name in ("fetch_timeout_s", "decode_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be over 0")
        if self.decode_processes != 0 and self.decode_processes < LEAST_PROCESSES:
            raise ValueError(f"`decode_processes` must be {LEAST_PROCESSES} or more, or 0 for one more than cores")

    @property
    def of_inputs(self) -> dict[str, Any]:
        """The arguments of `InputLimits`."""
        mine = msgspec.structs.asdict(self)
        return {name: value for name, value in mine.items() if name != "redact" and not name.startswith("decode_")}

    @property
    def of_decoding(self) -> DecodingLimits:
        return DecodingLimits(self.decode_s, self.decode_memory_bytes, self.decode_processes)


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: its class (a short name, or ``module:Class``), the source of its weights, its batch budget, its own
    options.

    Without a class it is a Hugging Face checkpoint, served by the kinds of its tasks (`workers.models.huggingface`).
    Only a class of your own can do without a source; a relative `path` counts from the file's folder.
    `batch_cost` is in the model's unit of cost (tokens for text), `batch_rows` in rows. A cost of 0 means the measured
    optimum, or the model's own default: on a GPU it may be many times a CPU's, and `batch_rows` is then multiplied by
    the same factor. `backend` ``auto`` is the fastest backend that was measured to answer like torch in fp32, at its
    precision; a model with a single backend uses that. `explain` chooses when the weights for explanations are loaded
    (the first item that asks for one waits for them), or that there are none. `uses` names models whose weights it
    reads too, by their role; its option `uses` has their folders. `tasks` is needed only for tasks outside the built-in
    catalogue.
    """

    class_: str = msgspec.field(name="class", default=_CHECKPOINT)
    source: dict[str, Any] = {}
    batch_cost: int = 0
    batch_rows: int = 64
    backend: Literal["auto", "torch", "onnxruntime", "openvino", "vllm"] = "auto"
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    compile: bool = False
    explain: Literal["on-demand", "preloaded", "off"] = "on-demand"
    uses: dict[str, str] = {}
    tasks: dict[str, Any] = {}
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.batch_cost < 0 or self.batch_rows < 1:
            raise ValueError("`batch_rows` must be 1 or more, `batch_cost` too, or 0 for the one measured to be best")
        if self.backend == "auto" and (self.precision != "fp32" or self.compile):
            raise ValueError("`precision` and `compile` are for a `backend` of your choice; name it")


class PlaceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of the broker or the store; the environment overrides it."""

    url: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a fleet; made by `load`."""

    worker: WorkerSettings = WorkerSettings()
    limits: LimitSettings = LimitSettings()
    models: dict[str, ModelSettings] = {}
    data: dict[str, dict[str, Any]] = {}
    admission: AdmissionSettings = AdmissionSettings()
    blobs: BlobSettings = BlobSettings()
    broker: PlaceSettings = PlaceSettings()
    store: PlaceSettings = PlaceSettings()
    edge: EdgeSettings | None = None
    retry: RetrySettings = RetrySettings()
    result_cache: ResultCacheSettings = ResultCacheSettings()
    log: LogSettings = LogSettings()

    @property
    def connection(self) -> Connection:
        """The addresses of the broker and the store."""
        broker = None if os.environ.get("ARGOSY_BROKER_URL") else self.broker.url
        store = None if os.environ.get("ARGOSY_STORE_URL") else self.store.url
        return Connection(broker or None, store or None)

    @property
    def catalogue(self) -> Catalogue:
        """The tasks of this fleet: the built-in ones of its models, and those of its file."""
        tables = {name: {"tasks": model.tasks} for name, model in self.models.items()}
        whole = Catalogue.builtin().with_models(tables, where="fleet.toml")
        served = {name: task for name, task in whole.tasks.items() if task.model in self.models}
        return Catalogue(served, Limits(self.limits.max_text_chars, self.limits.max_input_bytes, self.limits.redact))

    @property
    def served(self) -> tuple[str, ...]:
        """The served models: those named by `worker.models`, or else all with a task."""
        named = self.worker.models or (task.model for task in self.catalogue.tasks.values())
        return tuple(dict.fromkeys(named))

    def used_by(self, name: str) -> list[str]:
        """Return the other models whose weights a model reads."""
        return list(self.models[name].uses.values())

    @property
    def promised_wait_s(self) -> dict[int, float]:
        waits = {Priority.INTERACTIVE: self.worker.interactive_wait_s, Priority.STANDARD: self.worker.standard_wait_s}
        return {int(priority): wait_s for priority, wait_s in waits.items()}

    @property
    def guaranteed_shares(self) -> dict[int, float]:
        return {int(Priority.BULK): self.worker.bulk_share}


def load(path: str | Path | None = None, *, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of `path` (default: ``$ARGOSY_FLEET``, or none) over the built-in ones.

    Raises ConfigurationError naming the file and the setting.
    """
    built_in = built_in_tables()
    chosen = path or environment.get("ARGOSY_FLEET")
    merged = _merge(built_in, _with_paths(read_toml(chosen), expanded(chosen))) if chosen else built_in
    cascade = edge_settings(chosen) if chosen and "edge" in merged else None
    others = {name: table for name, table in _with_blob_url(merged, environment).items() if name != "edge"}
    return msgspec.structs.replace(_typed(others, str(chosen or "builtin.toml")), edge=cascade)


def built_in_tables() -> dict[str, Any]:
    """Return the tables of ``models/builtin.toml``."""
    return tomllib.loads(resources.files("workers.models").joinpath("builtin.toml").read_text("utf-8"))


def _with_paths(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    """Let the paths of sources, of options that are paths, and of allowed folders count from the folder of the file."""
    base = file.absolute().parent
    _let_count_from(base, raw.get("limits"), ("allowed_roots",))
    _let_count_from(base, raw.get("worker"), ("trainings", "schedules"))
    for kind in ("models", "data"):
        tables = raw.get(kind)
        for table in tables.values() if isinstance(tables, dict) else ():
            if isinstance(table, dict):
                _let_count_from(base, table.get("source"), ("path",))
                if class_lookup.is_built_in(table.get("class", _CHECKPOINT)):
                    _let_count_from(base, table.get("options"), _PATHS)
    return raw


def _let_count_from(base: Path, table: object, names: Iterable[str]) -> None:
    if not isinstance(table, dict):
        return
    for name in names:
        value = table.get(name)
        if isinstance(value, str) and value.strip() and "://" not in value:
            table[name] = str(_found(expanded(value), base))
        elif isinstance(value, list):
            named = [{name: one} for one in value]
            for one in named:
                _let_count_from(base, one, (name,))
            table[name] = [one[name] for one in named]
        elif isinstance(value, dict):
            _let_count_from(base, value, [*value])


def _found(path: Path, base: Path) -> Path:
    """Return a path of a file's; a path that only the working directory has is accepted for one release."""
    if not (base / path).exists() and path.exists():
        text = f"the path {path} is taken from the working directory; the next release takes it from {base}"
        warnings.warn(text, FutureWarning, stacklevel=2)
        return path.absolute()
    return base / path


def _with_blob_url(raw: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Let the environment override the file, as the client does."""
    url, blobs = environment.get("ARGOSY_BLOB_URL", "").strip(), raw.get("blobs", {})
    return {**raw, "blobs": {**blobs, "url": url}} if url and isinstance(blobs, dict) else raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge tables: a table in `over` extends the one in `base`, any other value replaces it."""
    merged = dict(base)
    for key, value in over.items():
        # a source is replaced whole: halves of two sources name nothing that exists
        extends = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "source"
        merged[key] = _merge(base[key], value) if extends else value
    return merged


def _typed(raw: dict[str, Any], where: str) -> Settings:
    """Table by table, and model by model, so that an error can name its place."""
    forms = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    tables: dict[str, Any] = {}
    for name, table in raw.items():
        if name not in forms:
            raise ConfigurationError(f"{where}: {name}: no such table; {known(name, forms)}")
        if name == "models":
            models = typed(table, dict[str, Any], f"{where}: models")
            tables[name] = {one: typed(own, ModelSettings, f"{where}: models.{one}") for one, own in models.items()}
        else:
            tables[name] = typed(table, forms[name], f"{where}: {name}")
    settings = Settings(**tables)
    _check(settings, where)
    return settings


def _check(settings: Settings, where: str) -> None:
    """Check one table against another: at the start, not at the first item. Raises ConfigurationError."""
    named: dict[str, Sequence[str]] = {"worker.models": settings.worker.models}
    for name, model in settings.models.items():
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{where}: models.{name}: use letters, digits and . _ - for a model's name")
        if not model.source and model.class_ == _CHECKPOINT:
            raise ConfigurationError(f"{where}: models.{name}.source: is missing")
        named[f"models.{name}.uses"] = settings.used_by(name)
        _warn_of_replaced(name, model, where)
    if settings.worker.trainings and TRAINING in settings.models:
        raise ConfigurationError(f"{where}: models.{TRAINING}: trainings have this name; give the model another")
    for setting, names in named.items():
        if unknown := [name for name in names if name not in settings.models]:
            raise ConfigurationError(
                f"{where}: {setting}: no model {unknown[0]!r}; {known(unknown[0], settings.models)}"
            )
    tasks = settings.catalogue.tasks
    if unknown := [task for task in settings.retry.tasks if task not in tasks]:
        raise ConfigurationError(f"{where}: retry.tasks: no task {unknown[0]!r}; {known(unknown[0], tasks)}")
    _check_cache(settings, tasks, where)
    for part in ("broker", "store"):
        url = getattr(settings, part).url
        if url:
            checked_url(url, part, f"{where}: {part}.url")


def _check_cache(settings: Settings, tasks: Mapping[str, Task], where: str) -> None:
    for name in settings.result_cache.tasks:
        if name not in tasks:
            raise ConfigurationError(f"{where}: result_cache.tasks: no task {name!r}; {known(name, tasks)}")
        if tasks[name].kind.makes_files:
            problem = f"the results of {name!r} are files, which belong to their job; leave it out"
            raise ConfigurationError(f"{where}: result_cache.tasks: {problem}")
    if settings.result_cache.tasks and settings.worker.drop_inputs:
        problem = "digests of inputs would be kept, which `drop_inputs` under [worker] forbids; choose one of the two"
        raise ConfigurationError(f"{where}: result_cache: {problem}")


def _warn_of_replaced(name: str, model: ModelSettings, where: str) -> None:
    builtin = Catalogue.builtin().tasks
    own = Catalogue({}).with_models({name: {"tasks": model.tasks}}, where=where)
    for task in own.tasks.keys() & builtin.keys():
        if builtin[task].model != name:
            logger.warning(
                "%s: models.%s.tasks.%s replaces the task of this name of the built-in model %s; "
                "give it another name unless you mean that",
                where,
                name,
                task,
                builtin[task].model,
            )
