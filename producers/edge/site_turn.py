"""The site's turn: ask the site's own models, judge their answers, and write final results, each once."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from producers.client.request import NewItem
from producers.edge import cascade
from producers.edge.cascade import Why
from producers.edge.groups import group_id, groups, is_whole
from producers.edge.load import LoadSharing
from producers.edge.site import Site
from producers.wire.edge.cascade_tasks import STAY
from producers.wire.edge.edge_settings import EdgeTask
from producers.wire.errors import ArgosyError, BrokerUnavailable, Overloaded
from producers.wire.messages import Priority
from producers.wire.publisher import as_unavailable
from producers.wire.queues import done_channel
from results_store.edge.edge_spool import EdgeItem, EdgeState
from results_store.errors import InvalidRow
from results_store.records import Committed, Result, ResultState

logger = logging.getLogger(__name__)

#: The site's own job of a submission is purged so long after its end; the spool has the answers then.
ASKED_KEPT_S = 3600.0

#: An item whose deadline ends in less is not asked any more.
LEAST_S = 0.01

Final = tuple[EdgeItem, Result]


class SiteTurn:
    """A turn looks at every item that can go on without the centre. Each step may be repeated after a crash."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._tasks = site.settings.tasks
        self._full = False
        self._finishing = asyncio.Lock()  # two that end parts of an envelope would both believe that others are left

    async def turn(self) -> bool:
        """Take a turn; return whether there may be more to do at once. Raises StoreUnavailable."""
        finals = [
            *await self._ask(),
            *await self._judge(),
            *await self._over(),
            *await self._answered(),
            *await self._due(),
        ]
        once = {(item.job, item.seq, item.task): (item, row) for item, row in finals}
        await self._finish([*once.values()])
        return bool(once)

    # --- asking ---

    async def _ask(self) -> list[Final]:
        """Submit new items to the site's own models, those of an envelope and task together."""
        new = await self._site.ask(lambda store: store.edge.items(EdgeState.NEW))
        now_s = self._site.clock.now_s()
        new = [item for item in new if item.due_s is None or item.due_s - now_s > LEAST_S]
        finals: list[Final] = []
        load = LoadSharing(self._site)
        for group in groups(new, lambda item: (item.ask, item.envelope, item.task)):
            try:
                if own := await self._keeping(group, load):
                    finals += await self._ask_for(own)
            except Overloaded as error:  # others may pass: of another priority, say
                logger.warning("%s; the site's items are asked again", error)
            except BrokerUnavailable as error:
                logger.warning("%s; the site's items are asked again", error)
                break
        return finals

    async def _keeping(self, items: Sequence[EdgeItem], load: LoadSharing) -> Sequence[EdgeItem]:
        """Return the items that the site computes itself; the others wait for the centre from now on."""
        if items[0].task not in self._tasks or items[0].ask is not None:
            return items
        shared = await load.shared(items, self._tasks[items[0].task])
        await self._site.ask(lambda store: store.edge.move(shared, EdgeState.WAITING))
        if shared:
            self._site.sends.set()
        gone = {item.seq for item in shared}  # a group is of one envelope and task
        return [item for item in items if item.seq not in gone]

    async def _ask_for(self, items: Sequence[EdgeItem]) -> list[Final]:
        site, first = self._site, items[0]
        if first.task not in self._tasks:
            problem = {"kind": "UnknownTask", "message": f"task: {first.task!r} is no longer a task of [edge]"}
            return [(item, cascade.final(replace(item, centre={"error": problem}), Why.STAYS)) for item in items]
        if first.ask is None or not is_whole(first.ask, items):
            ask = group_id(len(items))
            await site.ask(lambda store: store.edge.move(items, EdgeState.NEW, ask=ask, place=list(range(len(items)))))
            items = [replace(item, ask=ask, place=place) for place, item in enumerate(items)]
        stored = await site.stored(first.envelope)
        if not all(item.seq in stored for item in items):
            problem = {"kind": "InputsGone", "message": "the inputs are no longer stored; submit the items again"}
            return [(item, cascade.final(replace(item, centre={"error": problem}), Why.STAYS)) for item in items]
        inputs = [NewItem(stored[item.seq].input, params=_own(item.params)) for item in items]
        due_s = [item.due_s for item in items if item.due_s is not None]
        job = await site.client.submit_many(
            self._tasks[first.task].site or first.task,
            inputs,
            priority=Priority(first.priority),
            deadline_s=max(max(due_s) - site.clock.now_s(), LEAST_S) if due_s else None,
            name=f"the site's answers for {first.job}",
            idempotency_key=f"edge/{items[0].ask}",
            ttl_s=ASKED_KEPT_S,
            tenant=first.tenant,
            on_error="skip",
            patience_s=0,  # the turn goes on with other items
        )
        await site.ask(lambda store: store.edge.move(items, EdgeState.ASKED, site_job=job.id))
        wrong = {rejected.seq: rejected.error for rejected in job.rejected}
        return [
            (asked, cascade.final(replace(asked, site=_error(wrong[place])), Why.SITE_FAILED))
            for place, item in enumerate(items)
            if place in wrong and (asked := replace(item, state=EdgeState.ASKED))
        ]

    # --- judging ---

    async def _judge(self) -> list[Final]:
        """Decide on the items that the site's models have answered."""
        answers = await self._site.ask(lambda store: store.edge.site_answers())
        finals: list[Final] = []
        onward: defaultdict[float | None, list[EdgeItem]] = defaultdict(list)
        again: list[EdgeItem] = []
        for item, row in answers:
            task = self._tasks.get(item.task, EdgeTask(stay_on_site=True))
            marked = cascade.stays(task, item.params, STAY)
            if row.state in (ResultState.EXPIRED, ResultState.CANCELLED):
                if item.due_s is not None and item.due_s - self._site.clock.now_s() <= LEAST_S:
                    finals.append((item, cascade.final(item, Why.DEADLINE)))
                else:  # the site's wall clock was set, or somebody cancelled the site's own job
                    again.append(item)
                continue
            answered = replace(item, site=cascade.answer_of(row))
            if item.centre is not None:  # the centre was to share the load, and did not
                finals.append((answered, cascade.final(answered, cascade.returned(item))))
                continue
            why = cascade.escalates(task, answered.site or {}, marked=marked)
            if why is None:
                failed = row.state is ResultState.FAILED
                reason = Why.STAYS if marked else Why.SITE_FAILED if failed else Why.CONFIDENT
                finals.append((answered, cascade.final(answered, reason)))
            else:
                onward[self._due_s(item)].append(answered)
        await self._site.ask(lambda store: store.edge.move(again, EdgeState.NEW, ask=None, site_job=None))
        for due_s, items in onward.items():
            await self._send_on(items, due_s)
        return finals

    async def _send_on(self, items: Sequence[EdgeItem], due_s: float | None) -> None:
        answers = [item.site for item in items]
        await self._site.ask(lambda store: store.edge.move(items, EdgeState.WAITING, site=answers, due_s=due_s))
        self._site.sends.set()

    def _due_s(self, item: EdgeItem) -> float | None:
        wait_s = self._site.settings.wait_s
        return item.due_s if item.due_s is not None or not wait_s else self._site.clock.now_s() + wait_s

    async def _over(self) -> list[Final]:
        """Answer items without the centre, if more wait for it than the spool may hold."""
        settings = self._site.settings
        there, size = await self._site.ask(lambda store: store.edge.for_centre())
        over, over_bytes = there - settings.spool_items, size - settings.spool_mib * 2**20
        if over <= 0 and over_bytes <= 0:
            self._full = False
            return []
        newest = settings.when_full == "refuse-new"
        if not self._full:
            which = "new" if newest else "the oldest"
            logger.warning("the spool is full (edge.spool_items, spool_mib): %s items do without the centre", which)
        self._full = True
        dropped: list[EdgeItem] = []
        for item in await self._site.ask(lambda store: store.edge.waiting(1000, newest=newest)):
            if over <= 0 and over_bytes <= 0:
                break
            dropped.append(item)
            over, over_bytes = over - 1, over_bytes - item.bytes
        ending = []
        for item in dropped:
            if cascade.shared(item, self._tasks.get(item.task, EdgeTask(stay_on_site=True))):
                lack = cascade.refused(cascade.SPOOL_FULL, "the spool had no room for it")
                await self._move_one(item, {"centre": lack})
                self._site.rings.set()  # the next turn asks the site
            else:
                ending.append(item)
        return [(item, cascade.final(item, Why.SPOOL_FULL)) for item in ending]

    # --- ends ---

    async def _answered(self) -> list[Final]:
        items = await self._site.ask(lambda store: store.edge.items(EdgeState.ANSWERED))
        for item in items:
            if (same := cascade.agreed(item)) is not None:
                self._site.counted["agreed" if same else "differed"] += 1
        found: list[Final] = []
        for item in items:
            task = self._tasks.get(item.task, EdgeTask(stay_on_site=True))
            if cascade.returns(item, task):
                again = {"ask": None, "batch": None, "place": None, "centre_job": None}
                await self._move_one(item, again)
            else:
                found.append((item, cascade.of_centre(item, only_at_centre=task.only_at_centre)))
        return found

    async def _move_one(self, item: EdgeItem, changes: Mapping[str, Any]) -> None:
        await self._site.ask(lambda store: store.edge.move([item], EdgeState.NEW, **changes))

    async def _due(self) -> list[Final]:
        items = await self._site.ask(lambda store: store.edge.due(self._site.clock.now_s()))
        return [(item, cascade.final(item, Why.DEADLINE)) for item in items]

    async def cancelled(self) -> None:
        """End the items of cancelled jobs."""
        jobs = await self._site.ask(lambda store: store.cancelled_among(store.edge.jobs()))
        for job in jobs:
            await self._cancel(job)

    async def _cancel(self, job: str) -> None:
        items = await self._site.ask(lambda store: store.edge.of_job(job))
        await self._finish([(item, cascade.cancelled(item)) for item in items])

    async def lost(self) -> None:
        """Ask again for items whose job of the site's own was purged before its answers were read."""
        items = await self._site.ask(lambda store: store.edge.items(EdgeState.ASKED, limit=10_000))
        jobs = {item.site_job for item in items if item.site_job is not None}
        there = await self._site.ask(lambda store: set(store.retention.existing(jobs)))
        gone = [item for item in items if item.site_job not in there]
        await self._site.ask(lambda store: store.edge.move(gone, EdgeState.NEW, ask=None, site_job=None))

    async def _finish(self, finals: Sequence[Final]) -> None:
        """Commit results, tell who waits, and only then remove the rows: repeated, each of these changes nothing."""
        if finals:
            async with self._finishing:
                await self._finish_now(finals)

    async def _finish_now(self, finals: Sequence[Final]) -> None:
        items, rows = [item for item, _ in finals], [row for _, row in finals]
        ended: defaultdict[str, int] = defaultdict(int)
        for item in items:
            ended[item.envelope] += 1
        left = await self._site.ask(lambda store: store.edge.left(ended))
        done = [envelope for envelope, count in ended.items() if left.get(envelope, 0) <= count]
        committed = await self._commit(rows, done)
        self._count(rows)
        self._tell(committed.done)
        await self._site.ask(lambda store: store.edge.remove(items))

    async def _commit(self, rows: Sequence[Result], done: Sequence[str]) -> Committed:
        drop = self._site.drop_inputs
        try:
            return await self._site.ask(lambda store: store.commit(rows, done=done, drop_inputs=drop))
        except InvalidRow:
            storable = [await self._storable(row) for row in rows]
            return await self._site.ask(lambda store: store.commit(storable, done=done, drop_inputs=drop))

    async def _storable(self, row: Result) -> Result:
        """Return a result, or a failed one if the store cannot hold it."""
        try:
            await self._site.ask(lambda store: store.commit([row]))
        except InvalidRow as error:
            problem = {"kind": "InvalidRow", "message": str(error)}
            return replace(row, state=ResultState.FAILED, output=None, error=problem)
        return row

    def _count(self, rows: Iterable[Result]) -> None:
        for row in rows:
            head = row.output[0] if isinstance(row.output, list) and row.output else row.output or row.error
            note = head.get(cascade.NOTE) if isinstance(head, dict) else None
            self._site.counted[f"by {note['by']}" if note else row.state.value] += 1
            if note:
                self._site.counted[note["why"]] += 1

    def _tell(self, done: Iterable[tuple[str, str]]) -> None:
        redis = self._site.publisher.redis
        try:
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for job, envelope in done:
                    pipeline.publish(done_channel(job), envelope.encode())
                pipeline.execute()
        except (BrokerUnavailable, Overloaded) as error:
            logger.warning("%s; clients ask the store instead", error)


def _own(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters for the site's own task, which does not know the mark."""
    return {name: value for name, value in (params or {}).items() if name != STAY}


def _error(error: ArgosyError) -> dict[str, Any]:
    return {"state": ResultState.FAILED.value, "error": {"kind": type(error).__name__, "message": str(error)}}
