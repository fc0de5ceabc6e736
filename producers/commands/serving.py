"""The state of the fleet beside a job: models that no running worker serves, and revisions that have changed since."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from producers.wire.errors import ArgosyError
from producers.wire.training.training_job import TRAINING

if TYPE_CHECKING:
    from redis import Redis

    from results_store.records import Result

T = TypeVar("T")

#: The setting of workers that take trainings.
SETTING = 'worker.trainings = ["the folder of the recipes"]'

#: The results of a job that are looked at for their models' revisions.
LOOKED_AT = 100


def unserved(models: Iterable[str]) -> str | None:
    """Return a sentence if no running worker serves some of these models, or None, also if Redis cannot be asked."""
    served = _served()
    return None if served is None else unserved_sentence(models, served)


def unserved_sentence(models: Iterable[str], served: Collection[str]) -> str | None:
    """Return a sentence if some of these models are not among those that live workers serve, or None."""
    missing = sorted(set(models).difference(served))
    if not missing:
        return None
    if not served:
        return "no worker is running; the items wait until one is started (`argosy up`, `argosy worker`)"
    if missing == [TRAINING]:
        return f"no running worker takes trainings; they wait until one does: {SETTING} in its fleet.toml"
    names = ", ".join(missing)
    return f"no running worker serves {names}; the items wait until one does: name it in `models` of its fleet.toml"


def changed(results: Iterable[Result]) -> str | None:
    """Return a sentence if workers now serve another revision than that of these results, or None."""
    served = _served() or {}
    for row in results:
        now = served.get(row.model or "", set())
        if now and row.model_revision and row.model_revision not in now:
            return (
                f"its results are of {row.model} {row.model_revision}, and workers now serve {', '.join(sorted(now))}"
            )
    return None


def unscheduled(submission: str, host: str | None) -> str:
    """Return a remedy if no running worker may read a schedule's sources, or nothing, also if Redis cannot be asked."""
    from producers.wire.live_nodes import schedule_readers
    from producers.wire.outside.allowed_places import unread

    nodes = asked(schedule_readers)
    return "" if nodes is None else unread(submission, host, ((node.host, node.schedules) for node in nodes))


def _served() -> Mapping[str, set[str]] | None:
    from producers.wire.live_nodes import served_models

    return asked(served_models)


def asked(look: Callable[[Redis], T]) -> T | None:
    """Return the answer of Redis, or None if it cannot be asked."""
    from producers.wire.connection import Connection
    from producers.wire.publisher import as_unavailable, connect

    try:
        with connect(Connection().broker_url) as redis, as_unavailable(redis):
            return look(redis)
    except ArgosyError:
        return None
