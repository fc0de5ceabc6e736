"""Answers of earlier jobs: looked up before an item is prepared, and kept in the commit of what was computed.

An item is known by its tenant, model with revision, code and options, task with parameters, and content. An input that
only names its content (a path, a URL, a blob, another result) is computed each time, and so is an answer that is drawn
at random without a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.messages import (
    BlobInput,
    DerivedInput,
    Envelope,
    InlineBytes,
    Item,
    PathInput,
    TextAndImageInput,
    UrlInput,
)
from results_store.records import CachedResult, Claim, Claimed, Result, ResultState
from results_store.store import Store
from workers.batching.roster import ServedModel
from workers.batching.serving.offered_versions import CurrentVersions
from workers.batching.steady_clock import steady_time
from workers.envelope import outcomes
from workers.models.interface import class_code
from workers.result_cache_settings import ResultCacheSettings

#: Counts the forms of digests: another form finds nothing of an older one.
_FORM = 1

#: A newer version may answer otherwise.
_VERSION = metadata.version("argosy")

_NAMES = PathInput | UrlInput | BlobInput | DerivedInput

_canonical = msgspec.json.Encoder(order="deterministic", enc_hook=str).encode


@dataclass(slots=True)
class CacheLook:
    """The items of an envelope without those results that were `found`, and the digests of the others."""

    envelope: Envelope
    revision: str = ""
    found: list[Result] = field(default_factory=list)
    digests: dict[tuple[int, str], str] = field(default_factory=dict)

    def new(self, results: Iterable[Result]) -> list[CachedResult]:
        """Return the results to keep: computed here, by the revision that was asked for."""
        return [
            CachedResult(digest, row.job, row.envelope, row.output, row.vector, row.precision, row.tokens)
            for row in results
            if row.state is ResultState.SUCCEEDED
            and row.model_revision == self.revision
            and (digest := self.digests.get((row.seq, row.task)))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultCache:
    """The cache of results, in the store. Thread-safe."""

    settings: ResultCacheSettings
    offer: CurrentVersions
    store: Store

    def look(self, envelope: Envelope, claimed: Claimed) -> CacheLook:
        """Look up the results of an envelope's items. Raises StoreUnavailable.

        An envelope that is not to be computed, is late, runs alone, or belongs to a pipeline is left as it is.
        """
        usual = claimed.verdict is Claim.WORK and not claimed.alone and not envelope.pipeline
        late = envelope.deadline_at is not None and envelope.deadline_at <= steady_time()
        if not self.settings.tasks or not usual or late:
            return CacheLook(envelope)
        offer = self.offer.now
        look = CacheLook(envelope, offer.models[envelope.model].revision)
        look.digests = _Digests(envelope, offer.models[envelope.model]).of_items(self._tasks(envelope.model))
        if look.digests:
            self._take(look)
        return look

    def _tasks(self, model: str) -> dict[str, Task]:
        every = self.offer.now.catalogue.tasks
        named = [every[name] for name in self.settings.tasks if name in every]
        return {task.name: task for task in named if task.model == model and not task.kind.makes_files}

    def _take(self, look: CacheLook) -> None:
        cached = self.store.cached_results.find(set(look.digests.values()), keep_s=self.settings.keep_s)
        if not cached:
            return
        items: list[Item] = []
        for item in look.envelope.items:
            own = {task: row for task in item.tasks if (row := cached.get(look.digests.get((item.seq, task), "")))}
            look.found += [_answer(look.envelope, item, task, row, look.revision) for task, row in own.items()]
            if len(own) < len(item.tasks):
                items.append(_without(item, own) if own else item)
        look.envelope = msgspec.structs.replace(look.envelope, items=tuple(items))


class _Digests:
    """The digests of an envelope's items for a version of its model."""

    def __init__(self, envelope: Envelope, served: ServedModel) -> None:
        self._envelope = envelope
        model = served.model
        made_by = f"{type(model).__module__}.{type(model).__qualname__}"
        code = (_VERSION, made_by, class_code.noted(type(model)))
        self._about = (_FORM, envelope.tenant, envelope.model, served.revision, code, model.spec.options)
        self._begun: dict[tuple[str, int], Any] = {}  # by task and parameters, which items in columns share

    def of_items(self, tasks: dict[str, Task]) -> dict[tuple[int, str], str]:
        """Return the digests of the results of these tasks that may be kept, by item and task."""
        found: dict[tuple[int, str], str] = {}
        for item in self._envelope.items:
            if any(name not in item.tasks for name in item.params):
                continue  # it is refused
            wanted = [task for task in item.tasks if task in tasks]
            content = _content(item) if wanted else None
            for name in wanted if content is not None else ():
                if (begun := self._for(tasks[name], item)) is not None:
                    digest = begun.copy()
                    digest.update(content)
                    found[item.seq, name] = digest.hexdigest()
        return found

    def _for(self, task: Task, item: Item) -> Any:
        given = item.params.get(task.name)
        place = (task.name, id(given))
        if place not in self._begun:
            params = _params(task, given or {})
            about = None if params is None else (*self._about, task.name, task.kind.name, params)
            self._begun[place] = None if about is None else hashlib.sha256(_canonical(about) + b"\0")
        return self._begun[place]


def _params(task: Task, given: dict[str, Any]) -> msgspec.Struct | None:
    """Return the parameters with their defaults; None if they are refused, or their answers are not kept."""
    try:
        params = msgspec.convert({**task.params, **given}, task.kind.params)
    except (msgspec.ValidationError, InvalidInput):
        return None
    at_random = getattr(params, "temperature", 0.0) and getattr(params, "seed", None) is None
    own_way = getattr(params, "stream", False) or getattr(params, "explain", False)
    return None if at_random or own_way else params


def _content(item: Item) -> bytes | None:
    """Return the bytes of an input; None if it only names its content."""
    given = item.input
    if isinstance(given, str):
        return b"text\0" + given.encode("utf-8", "surrogatepass")
    outside = isinstance(given, _NAMES)
    if outside or (isinstance(given, TextAndImageInput) and not isinstance(given.image, InlineBytes)):
        return None
    return b"form\0" + msgspec.msgpack.encode(given)


def _answer(envelope: Envelope, item: Item, task: str, row: CachedResult, revision: str) -> Result:
    return outcomes.result(
        envelope,
        item,
        task,
        ResultState.SUCCEEDED,
        output=row.output,
        vector=row.vector,
        model_revision=revision,
        precision=row.precision,
        tokens=row.tokens,
    )


def _without(item: Item, found: Collection[str]) -> Item:
    params = {task: own for task, own in item.params.items() if task not in found}
    return msgspec.structs.replace(item, tasks=tuple(task for task in item.tasks if task not in found), params=params)
