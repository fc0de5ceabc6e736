"""Load sharing: which items the site's own models would compute too late, by the learned seconds of its queue."""

from __future__ import annotations

from collections.abc import Sequence

from producers.edge import cascade
from producers.edge.site import Site
from producers.wire.edge.cascade_tasks import STAY
from producers.wire.edge.edge_settings import EdgeTask
from results_store.edge.edge_spool import EdgeItem
from results_store.records import QueuedWork

#: Of a centre's recent seconds for a batch, the newest count for so much.
NEWEST = 0.2


def learned(before_s: float, took_s: float) -> float:
    """Return the centre's seconds for a batch after another one."""
    return took_s if not before_s else before_s + NEWEST * (took_s - before_s)


def queue_s(work: Sequence[QueuedWork], model: str, priority: int, more: int) -> float:
    """Return the seconds until `more` items behind a model's queue are computed; 0 while its speed is unknown."""
    ahead = [part for part in work if part.model == model and part.priority <= priority]
    known = [part.seconds_per_item for part in work if part.model == model and part.seconds_per_item is not None]
    if not known:
        return 0.0
    return (sum(part.items for part in ahead) + more) * max(known)


class LoadSharing:
    """Judges the groups of a turn. Items that are asked at the site count for those that follow."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._work: list[QueuedWork] | None = None
        self._asked = 0

    async def shared(self, items: Sequence[EdgeItem], task: EdgeTask) -> list[EdgeItem]:
        """Return the items of a group that go to the centre: none or, marked ones aside, all of them.

        All stay while the link is down, while the centre itself would be too late, and without a deadline.
        """
        site, first = self._site, items[0]
        leaving = [item for item in items if item.centre is None and not cascade.stays(task, item.params, STAY)]
        if not site.settings.share_load or not leaving or site.link_state != "up" or first.due_s is None:
            return []
        left_s = first.due_s - site.clock.now_s()
        if site.centre_s > left_s:
            return []
        if self._work is None:
            self._work = await site.client.queued_work()
        model = (await site.client.catalogue()).task(task.site or first.task).model
        if queue_s(self._work, model, first.priority, self._asked + len(items)) > left_s:
            return leaving
        self._asked += len(items)
        return []
