"""The models of the settings on a device of this machine: weights located, backend and budget chosen."""

from __future__ import annotations

import msgspec

from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import known
from workers.batching.planning.policy import Budget
from workers.batching.roster import ServedModel
from workers.batching.serving import tuned_backend
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device
from workers.models.backends.choice import Backend
from workers.models.interface import class_code, returned
from workers.models.interface.model import Model, ModelSpec
from workers.models.sources import model_source
from workers.settings import ModelSettings, Settings


def model_to_load(settings: Settings, name: str) -> ModelToLoad:
    """Return a model of the settings, on the reference backend. Raises ConfigurationError if it is unknown or not
    pulled.
    """
    if name not in settings.models:
        raise ConfigurationError(f"no model {name!r} in the settings; {known(name, settings.models)}")
    chosen = settings.models[name]
    source = model_source.of_model(chosen.source, name)
    pulled = model_source.locate(source, model_source.cache_folder())
    if pulled is None and isinstance(source, model_source.FolderSource):
        raise ConfigurationError(f"models.{name}.source.path: {model_source.missing_folder(source)}")
    if pulled is None:
        raise ConfigurationError(f"models.{name}: not pulled yet; run `argosy models pull {name}`")
    tasks = {task.name: task for task in settings.catalogue.tasks.values() if task.model == name}
    # users who have inputs deleted do not want features of them kept either
    forgotten = ("feature_cache_mib",) if settings.worker.drop_inputs else ()
    options = {option: value for option, value in chosen.options.items() if option not in forgotten}
    if isinstance(source, model_source.FolderSource | model_source.HubSource) and source.onnx:
        options["onnx"] = source.onnx
    if chosen.uses:
        used = {role: model_to_load(settings, other) for role, other in chosen.uses.items()}
        options["uses"] = {role: other.folder for role, other in used.items()}
        revision = "+".join([pulled.revision, *(other.revision for other in used.values())])
        pulled = model_source.Pulled(pulled.folder, revision)
    wanted = ModelToLoad.from_spec(chosen.class_, ModelSpec(name, pulled.folder, pulled.revision, tasks, options))
    if isinstance(source, model_source.NoSource):  # the code is the model
        return msgspec.structs.replace(wanted, revision=f"{name}@{class_code.digest(type(build(wanted)))}")
    return wanted


def serve(settings: Settings, name: str, device: Device) -> tuple[ModelToLoad, ServedModel]:
    """Return a model for the device process, and for the batcher. Measures backends where the settings leave the choice
    open.

    Raises ConfigurationError.
    """
    wanted, chosen = model_to_load(settings, name), settings.models[name]
    model = build(wanted)
    if chosen.backend not in ("auto", *model.backends):
        known = f"has {', '.join(model.backends)}" if model.backends else "has no backends to choose from; leave it out"
        raise ConfigurationError(f"models.{name}.backend: {chosen.class_} {known}")
    pinned = device.pinned
    if pinned is not None:
        _check_pinned(name, chosen, model, device)
    decision = None
    if chosen.backend == "auto" or not chosen.batch_cost:
        worker = settings.worker
        decision = tuned_backend.resolve(wanted, device, measure=worker.tune_at_start, threads=worker.threads)
    wanted = msgspec.structs.replace(wanted, backend=_backend(name, chosen, decision, pinned or model.reference))
    model = build(wanted)
    cost = chosen.batch_cost or (decision.batch_cost if decision else model.default_cost)
    # on a GPU the best batch may exceed the largest budget for CPUs; then this many times the rows are kept ready
    times = max(1, cost // model.budgets[-1]) if model.budgets and not chosen.batch_cost else 1
    return wanted, ServedModel(model, revision_of(model), Budget(cost, chosen.batch_rows * times))


def revision_of(model: Model) -> str:
    """Return a model's revision. Raises ConfigurationError, also for an exception of a class's own."""
    where = f"models.{model.spec.name}: {type(model).__name__}.revision"
    try:
        found: object = model.revision
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{where}: {type(error).__name__}: {returned.text(error)}") from error
    if not isinstance(found, str) or not found.isprintable():  # a database must hold it, beside each result
        raise ConfigurationError(f"{where} is {found!r:.80}; give it a text")
    return found


def build(wanted: ModelToLoad) -> Model:
    """Return the parent's side of a model. Raises ConfigurationError if its class cannot be imported or made."""
    try:
        model = wanted.build()
    except ConfigurationError:
        raise
    except BaseException as error:  # a module of the user's own may raise anything, also SystemExit
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = f"{type(error).__name__}: {returned.text(error)}"
        raise ConfigurationError(f"models.{wanted.name}.class: {wanted.class_}: {problem}") from error
    if returned.is_own(model):
        class_code.note(type(model))
    return model


def _check_pinned(name: str, chosen: ModelSettings, model: Model, device: Device) -> None:
    """Raise ConfigurationError unless a model runs on the runtime to which the node is pinned."""
    runtime = device.pinned.name if device.pinned else ""
    if runtime not in model.backends:
        known = f"runs on {', '.join(model.backends)}" if model.backends else "has no backends to choose from"
        remedy = "serve it by another node, and name this node's models in worker.models"
        raise ConfigurationError(f"models.{name}: {type(model).__name__} {known}, not on {device.name}; {remedy}")
    if chosen.backend not in ("auto", runtime):
        problem = f"is {chosen.backend!r}, and the node's device {device.name} runs {runtime}"
        raise ConfigurationError(f"models.{name}.backend: {problem}; leave it out, or use another device")


def _backend(
    name: str, chosen: ModelSettings, decision: tuned_backend.BackendDecision | None, default: Backend
) -> Backend:
    if chosen.backend == "auto":
        return decision.backend if decision else default
    try:
        return Backend(chosen.backend, chosen.precision, chosen.compile, device=default.device)
    except ConfigurationError as error:
        raise ConfigurationError(f"models.{name}.{error}") from error
