"""The portions of an envelope that runs alone: all items together, then one by one to find the item that kills.

The store counts the deaths of workers under an envelope. After several of them the envelope runs alone, so that a
further death is its own. If a worker dies of that too, the items run one by one. Each item is noted as the suspect
before it starts, and its results are committed before the next item starts. An item with which workers died several
times alone is not started again: it fails, and the other items go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from producers.wire.messages import Envelope, Item
from results_store.records import ALL_ITEMS, ALONE_AFTER_DEATHS, Claimed, Result, ResultState
from results_store.store import Store
from workers.envelope import outcomes
from workers.envelope.cached_answers import CacheLook

logger = logging.getLogger(__name__)

#: The number of deaths with an item alone, after which the item fails.
LOST_AFTER_DEATHS = 3


class Portion(NamedTuple):
    """Items that are computed and committed together: an `envelope` with only these.

    `results` are the results of the commit; the portion has some before it is computed. The `last` portion ends the
    envelope. The `look` has what the cache knows of the items.
    """

    envelope: Envelope
    results: list[Result]
    last: bool = True
    look: CacheLook | None = None


def portions(envelope: Envelope, claimed: Claimed, results: list[Result], store: Store) -> Iterator[Portion]:
    """Yield the portions of an envelope that runs alone. `results` are those of items that could not be decoded.

    The next portion is to be taken only after the commit of the one before. Raises StoreUnavailable.
    """
    logger.warning(
        "envelope %s of job %s runs alone: its workers died at least %d times without an error",
        envelope.id,
        envelope.job,
        ALONE_AFTER_DEATHS,
    )
    if claimed.one_by_one or len(envelope.items) == 1:
        yield from _items(envelope, store)
        envelope = reduced(envelope)
    else:
        store.note_suspect(envelope.id, ALL_ITEMS)
    yield Portion(envelope, results)


def _items(envelope: Envelope, store: Store) -> Iterator[Portion]:
    """Yield a portion for each item without all its results, and note the item as the suspect before."""
    found = store.results_of(envelope.job, [item.seq for item in envelope.items])
    stored = {(row.seq, row.task) for row in found}
    for item in envelope.items:
        if all((item.seq, task) in stored for task in item.tasks):
            continue
        if store.note_suspect(envelope.id, item.seq) <= LOST_AFTER_DEATHS:
            yield Portion(reduced(envelope, item), [], last=False)
            continue
        error = {
            "kind": "WorkerLost",
            "message": f"the worker died {LOST_AFTER_DEATHS} times while it ran this item alone; look for the cause in "
            "the worker's log and in the kernel's (out of memory?), then run `argosy replay --error WorkerLost`",
        }
        logger.error("envelope %s, item %s of job %s: %s", envelope.id, item.seq, envelope.job, error["message"])
        yield Portion(reduced(envelope), outcomes.ended(envelope, item, ResultState.FAILED, error), last=False)


def reduced(envelope: Envelope, *items: Item) -> Envelope:
    """Return the envelope with only these items."""
    return msgspec.structs.replace(envelope, items=items)
