"""Load sharing: which items the site's own models would compute too late, by the learned seconds of its queue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from producers.edge import cascade
from producers.edge.site import Site
from producers.wire.edge.cascade_tasks import STAY
from producers.wire.edge.edge_settings import EdgeTask
from results_store.edge.edge_spool import EdgeItem
from results_store.records import QueuedWork

#: Of the time that is left, the site plans for so much: an item may take longer than the recent ones.
PLANNED = 0.8

#: Of a centre's recent seconds for a batch, the newest count for so much.
NEWEST = 0.2


def learned(before_s: float, took_s: float) -> float:
    """Return the centre's seconds for a batch after another one."""
    return took_s if not before_s else before_s + NEWEST * (took_s - before_s)


def queued_items(work: Sequence[QueuedWork], model: str, priority: int) -> int:
    """Return the items that a model computes before new ones of a priority."""
    return sum(part.items for part in work if part.model == model and part.priority <= priority)


def in_time(left_s: float, seconds_per_item: float) -> float:
    """Return the number of items that the site computes within `left_s`, with time to spare; all if none was seen."""
    return PLANNED * left_s / seconds_per_item if seconds_per_item > 0 else math.inf


class LoadSharing:
    """Judges the groups of a turn. Items that are asked at the site count for those that follow."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._work: Sequence[QueuedWork] = ()
        self._rates: Mapping[str, float] = {}
        self._asked: Counter[str] = Counter()

    async def shared(self, items: Sequence[EdgeItem], task: EdgeTask) -> list[EdgeItem]:
        """Return the items of a group that go to the centre, since the site would not compute them in time.

        Marked items stay, and come first. All stay while the link is down, while the centre itself would be too late,
        and without a deadline.
        """
        site, first = self._site, items[0]
        leaving = [item for item in items if item.centre is None and not cascade.stays(task, item.params, STAY)]
        if not site.settings.share_load or not leaving or site.link_state != "up" or first.due_s is None:
            return []
        left_s = first.due_s - site.clock.now_s()
        if site.centre_s > left_s:
            return []
        if not self._rates:
            self._rates = await site.ask(lambda store: store.flight.seconds_per_item())
            self._work = await site.client.queued_work()
        model = (await site.client.catalogue()).task(task.site or first.task).model
        ahead = queued_items(self._work, model, first.priority) + self._asked[model]
        staying = len(items) - len(leaving)
        room = in_time(left_s, self._rates.get(model, 0.0)) - ahead - staying
        kept = int(min(max(room, 0), len(leaving)))
        self._asked[model] += staying + kept
        return leaving[kept:]
