"""Batches to the centre, and its answers. Both may wait for days: items that are not sent are rows in the spool."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from producers.edge import cascade
from producers.edge.departure import Departing, NotSendable, StaysOnSite, departing
from producers.edge.groups import group_id, groups, is_whole
from producers.edge.link import BatchRefused, BatchTooLarge, CentreFault, JobGone, Link, LinkDown, OutgoingBatch
from producers.edge.load import learned
from producers.edge.site import Site, heard
from producers.wire.messages import Item, Priority
from results_store.edge.edge_spool import EdgeItem, EdgeState
from results_store.errors import StoreUnavailable

logger = logging.getLogger(__name__)

#: A batch has at most so many items and about so many bytes, so that a lost connection costs little.
BATCH_ITEMS, BATCH_BYTES = 64, 1024 * 1024

#: With a limit of bandwidth, a batch has at most the bytes of so many seconds, and the next one waits for them.
PACED_S = 5.0

#: Batches at the centre at the same time. While they are under way, others gather.
MOST_SENT = 16

#: Seconds before a link that is down is tried again: doubled each time, up to the longest.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0

#: A batch at which the centre itself fails so often is answered by the site, so that it does not hold up all others.
MOST_FAULTS = 5

#: Seconds between two looks without a bell.
LOOK_S = 1.0


class Backoff:
    """The waits of a link that is down."""

    def __init__(self) -> None:
        self._failures = 0

    def wait_s(self, wished_s: float | None) -> float:
        """Return the next wait, spread so that sites do not come back together."""
        wait_s: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        spread_s = wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        return max(min(wished_s or 0.0, LONGEST_WAIT_S), spread_s)

    def over(self) -> None:
        self._failures = 0


class Escalation:
    """Sends waiting items in batches, and follows the batches at the centre. Runs until it is cancelled."""

    def __init__(self, site: Site, link: Link) -> None:
        self._site = site
        self._link = link
        self._backoff = Backoff()
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._faults: Counter[str] = Counter()
        self._doubtful = False  # whether a request has failed since the last one that passed
        self._closed = f"closed: items are sent from {site.settings.hours.replace('-', ' to ')}"

    async def run(self) -> None:
        """Send batches as items come; after a start those first that were under way."""
        try:
            while True:
                try:
                    await self._follow_all()
                    if not self._is_open():
                        await asyncio.sleep(LOOK_S)
                    elif not await self._send():
                        await self._greet()
                        await heard(self._site.sends, LOOK_S)
                except StoreUnavailable as error:
                    logger.warning("%s", error)
                    await asyncio.sleep(LOOK_S)
                except LinkDown as error:
                    await self._down(error)
        finally:
            for task in self._followed.values():
                task.cancel()
            await asyncio.gather(*self._followed.values(), return_exceptions=True)

    async def _down(self, error: LinkDown) -> None:
        if self._site.link_state != str(error):
            logger.warning("%s; items wait at the site", error)
        self._site.link_state = str(error)
        self._doubtful = True
        await asyncio.sleep(self._backoff.wait_s(error.retry_s))

    async def _greet(self) -> None:
        """Find out whether the link is up, if nothing is sent that would tell. Raises LinkDown.

        Load is shared over a link that is up, so over one that nobody tries it never would be. A batch whose answers do
        not come may have a busy centre, or none.
        """
        if self._doubtful or (self._site.settings.share_load and self._site.link_state != "up"):
            await self._link.greet()
            self._up()

    def _is_open(self) -> bool:
        """Return whether items may be sent at this time of the day."""
        if not self._site.is_open:
            self._site.link_state = self._closed
            return False
        if self._site.link_state == self._closed:
            self._site.link_state = "up"
        return True

    def _up(self) -> None:
        self._doubtful = False
        if self._site.link_state == self._closed:  # it is the answer to an earlier batch
            return
        if self._site.link_state != "up":
            logger.info("the centre answers")
        self._site.link_state = "up"
        self._backoff.over()

    # --- sending ---

    async def _send(self) -> bool:
        """Send a batch: one whose sending was interrupted, or a new one. Return whether there was one.

        Raises LinkDown; the batch then stays as it is.
        """
        if len(self._followed) >= MOST_SENT:
            return False
        items = await self._interrupted() or await self._next()
        if not items:
            return False
        await self._submit(items)
        return True

    async def _interrupted(self) -> list[EdgeItem]:
        batched = await self._site.ask(lambda store: store.edge.items(EdgeState.BATCHED))
        for group in groups(batched, lambda item: item.batch):
            batch = str(group[0].batch)
            whole = await self._of_batch(batch)
            if is_whole(batch, whole) and len(whole) == len(group):
                return whole
            # an item of it has ended: the centre may know the batch with it, so the others need another one
            await self._again(group)
        return []

    async def _next(self) -> list[EdgeItem]:
        """Return the next batch of waiting items, noted before it is sent."""
        waiting = await self._site.ask(lambda store: store.edge.items(EdgeState.WAITING, limit=4 * BATCH_ITEMS))
        now_s = self._site.clock.now_s()
        waiting = [item for item in waiting if item.due_s is None or item.due_s > now_s]
        if not waiting:
            return []
        return await self._batch(_together(waiting, self._most_bytes))

    async def _batch(self, items: Sequence[EdgeItem]) -> list[EdgeItem]:
        """Make a batch of items, with an id that the centre does not know."""
        batch, places = group_id(len(items)), list(range(len(items)))
        await self._site.ask(lambda store: store.edge.move(items, EdgeState.BATCHED, batch=batch, place=places))
        return [replace(item, state=EdgeState.BATCHED, batch=batch, place=place) for place, item in enumerate(items)]

    @property
    def _bytes_per_s(self) -> float:
        """The most bytes of inputs that are sent in a second."""
        return self._site.settings.max_kbit_s * 125 or math.inf

    @property
    def _most_bytes(self) -> float:
        """The most bytes of a batch."""
        return min(BATCH_BYTES, self._bytes_per_s * PACED_S)

    async def _again(self, items: Sequence[EdgeItem]) -> None:
        """Let items wait for another batch."""
        gone = dict.fromkeys(("batch", "place", "centre_job"))
        await self._site.ask(lambda store: store.edge.move(items, EdgeState.WAITING, **gone))

    async def _submit(self, items: Sequence[EdgeItem]) -> None:
        passing = await self._through_gate(items)
        if len(passing) < len(items):  # the site answers the others, or they wait for another batch
            leaving = [item for item in items if _key(item) in passing]
            await self._again([item for item in items if _key(item) not in passing])
            if not leaving:
                return
            items = await self._batch(leaving)
        first, now_s = items[0], self._site.clock.now_s()
        due_s = [item.due_s for item in items if item.due_s is not None]
        batch = OutgoingBatch(
            id=str(first.batch),
            task=self._site.settings.tasks[first.task].centre or first.task,
            items=[passing[_key(item)] for item in items],
            priority=Priority(first.priority).name.lower(),
            deadline_s=max(max(due_s) - now_s, 0.05) if due_s else None,
        )
        try:
            job = await self._link.submit(batch)
        except BatchRefused as error:
            if isinstance(error, BatchTooLarge) and len(items) > 1:
                middle = len(items) // 2
                for half in (items[:middle], items[middle:]):
                    await self._batch(half)
                return
            logger.warning("the centre refuses a batch for %r: %s", batch.task, error.kind)
            await self._answer(items, [cascade.refused(error.kind, str(error))] * len(items))
            return
        except CentreFault as error:
            self._faults[batch.id] += 1
            if self._faults[batch.id] < MOST_FAULTS:
                raise
            del self._faults[batch.id]
            await self._answer(items, [cascade.refused("CentreFault", str(error))] * len(items))
            return
        self._faults.pop(batch.id, None)
        self._up()
        self._site.counted["sent"] += len(items)
        await self._site.ask(lambda store: store.edge.move(items, EdgeState.SENT, centre_job=job))
        self._follow(str(first.batch), job)
        await asyncio.sleep(sum(len(item.body) for item in batch.items) / self._bytes_per_s)

    async def _through_gate(self, items: Sequence[EdgeItem]) -> dict[Hashable, Departing]:
        """Return the items that may leave, as they are sent, up to the bytes of a batch. A file is read here.

        The site answers those that may not leave.
        """
        found: dict[Hashable, Departing] = {}
        stopped: list[tuple[EdgeItem, dict[str, Any]]] = []
        envelope, stored, size = "", dict[int, Item](), 0
        for item in items:
            if item.envelope != envelope:
                envelope, stored = item.envelope, await self._site.stored(item.envelope)
            task = self._site.settings.tasks.get(item.task)
            try:
                if task is None or item.seq not in stored:
                    raise NotSendable("the item's task is no longer one of [edge], or its input is not stored")
                leaving = await asyncio.to_thread(departing, stored[item.seq], item.task, task, self._site.roots)
            except (StaysOnSite, NotSendable) as error:
                stopped.append((item, cascade.refused(type(error).__name__, str(error))))
                continue
            size += len(leaving.body)
            if found and size > self._most_bytes:
                break
            found[_key(item)] = leaving
        await self._answer([item for item, _ in stopped], [answer for _, answer in stopped])
        return found

    async def _answer(self, items: Sequence[EdgeItem], answers: Sequence[Mapping[str, Any]]) -> None:
        await self._site.ask(lambda store: store.edge.move(items, EdgeState.ANSWERED, centre=list(answers)))
        self._site.rings.set()

    # --- following ---

    async def _follow_all(self) -> None:
        """Follow the batches that an earlier process sent."""
        sent = await self._site.ask(lambda store: store.edge.items(EdgeState.SENT, limit=MOST_SENT * BATCH_ITEMS))
        for item in sent:
            self._follow(str(item.batch), str(item.centre_job))

    def _follow(self, batch: str, job: str) -> None:
        if batch not in self._followed and len(self._followed) < MOST_SENT:
            task = asyncio.create_task(self._gather(batch, job), name=f"batch {batch}")
            self._followed[batch] = task
            task.add_done_callback(lambda _: self._ended(batch))

    def _ended(self, batch: str) -> None:
        self._followed.pop(batch, None)
        self._site.sends.set()

    async def _gather(self, batch: str, job: str) -> None:
        """Gather a batch's answers until none of its items waits for one."""
        backoff, began = Backoff(), time.monotonic()
        while left := await self._left(batch):
            try:
                async for rows in self._link.results(job):
                    self._up()
                    backoff.over()
                    await self._take(left, rows)
                self._site.centre_s = learned(self._site.centre_s, time.monotonic() - began)
                if await self._link.is_finished(job):
                    left = await self._left(batch)
                    gone = cascade.refused("NoResult", "the centre did not take this item")
                    await self._answer(left, [gone] * len(left))
            except JobGone:
                logger.warning("the centre has lost a batch; its items are sent again")
                await self._again(await self._left(batch))
            except LinkDown as error:
                self._doubtful = True
                await asyncio.sleep(backoff.wait_s(error.retry_s))
            except BatchRefused as error:
                logger.warning("the centre refuses to give a batch's answers: %s", error.kind)
                await asyncio.sleep(backoff.wait_s(None))
            except StoreUnavailable as error:
                logger.warning("%s", error)
                await asyncio.sleep(LOOK_S)

    async def _left(self, batch: str) -> list[EdgeItem]:
        return [item for item in await self._of_batch(batch) if item.state is EdgeState.SENT]

    async def _of_batch(self, batch: str) -> list[EdgeItem]:
        return await self._site.ask(lambda store: store.edge.of_batch(batch))

    async def _take(self, left: Iterable[EdgeItem], rows: Iterable[Mapping[str, Any]]) -> None:
        by_place = {item.place: item for item in left}
        found = [(by_place[row["seq"]], cascade.answer_of(row)) for row in rows if row.get("seq") in by_place]
        await self._answer([item for item, _ in found], [answer for _, answer in found])


def _together(waiting: Sequence[EdgeItem], most_bytes: float) -> list[EdgeItem]:
    """Return the items that go with the first: of its task and priority, due within the same second, bounded."""
    size, found = 0, list[EdgeItem]()
    for item in groups(waiting, _alike)[0]:
        size += item.bytes
        if found and (len(found) >= BATCH_ITEMS or size > most_bytes):
            break
        found.append(item)
    return found


def _key(item: EdgeItem) -> Hashable:
    return item.job, item.seq, item.task


def _alike(item: EdgeItem) -> Hashable:
    return item.task, item.priority, None if item.due_s is None else math.ceil(item.due_s)
