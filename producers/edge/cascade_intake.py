"""Takes the envelopes of the cascade's tasks as a worker takes its models': message, claim, rows in the spool."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from producers.edge.site import LEASE_S, Site
from producers.wire.edge.edge_settings import EDGE
from producers.wire.errors import BrokerUnavailable, InvalidMessage
from producers.wire.messages import (
    JSON,
    UNREADABLE,
    BadItem,
    Envelope,
    Priority,
    decode,
    named,
    outline,
    stored_envelope,
)
from producers.wire.packing import weight
from producers.wire.publisher import as_unavailable
from producers.wire.queues import PRIORITY_STEPS, RefusedMessage, note_refused, redis_key
from results_store.edge.edge_spool import EdgeItem, EdgeState
from results_store.errors import StoreUnavailable
from results_store.records import Claim, Claimed, Result, ResultState

logger = logging.getLogger(__name__)

#: Seconds for which the intake waits for a message before it looks for new lanes of tenants.
WAIT_S = 1.0

#: Seconds after which Redis is asked again.
AGAIN_S = 1.0


class CascadeIntake:
    """Runs until it is cancelled."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def run(self) -> None:
        """Take envelopes as they come."""
        await self.resume()
        while True:
            try:
                await self._take_next()
            except BrokerUnavailable as error:
                logger.warning("%s; envelopes wait in the store", error)
                await asyncio.sleep(AGAIN_S)

    async def _take_next(self) -> None:
        """Take a message if one comes. At a stop the message that was just taken from Redis is taken all the same."""
        waiting = asyncio.ensure_future(asyncio.to_thread(self._next))
        try:
            message = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            try:
                if (message := await waiting) is not None:
                    await self.take(message)
            except (BrokerUnavailable, StoreUnavailable) as error:  # raised instead, it would undo the cancellation
                logger.warning("%s; envelopes wait in the store", error)
            raise
        if message is not None:
            await self.take(message)

    async def resume(self) -> None:
        """Hold the envelopes again that an earlier process has left in the spool."""
        envelopes = await self._site.ask(lambda store: store.edge.envelopes())
        for start in range(0, len(envelopes), 500):
            claims = await self._claim(envelopes[start : start + 500])
            for envelope, claimed in claims.items():
                await self._act(envelope, claimed)
        self._site.rings.set()
        self._site.sends.set()

    def _next(self) -> bytes | None:
        """Wait for a message of any priority and lane; None if none comes. Raises BrokerUnavailable."""
        lanes = sorted({0, *(tenant.lane for tenant in self._site.store.tenants.every())})
        keys = [redis_key(EDGE, Priority(priority), lane) for priority in PRIORITY_STEPS for lane in lanes]
        redis: Any = self._site.publisher.redis
        with as_unavailable(redis):
            found = redis.brpop(keys, timeout=WAIT_S)
        return None if found is None else bytes(found[1])

    async def take(self, message: bytes) -> None:
        """Claim the envelope that a message names, and put its items into the spool.

        If the process dies before that, the envelope is overdue, and the site's reconciler publishes it again.
        """
        try:
            raw = _body(message)
            name = named(raw)
        except (InvalidMessage, *UNREADABLE) as error:
            await self._put_aside(message, f"names no envelope: {type(error).__name__}")
            return
        if not name.durable:
            await self._refuse_undurable(message, raw)
            return
        claims = await self._claim([name.id])
        await self._act(name.id, claims[name.id])

    async def _claim(self, envelopes: Sequence[str]) -> dict[str, Claimed]:
        worker = self._site.worker
        return await self._site.ask(lambda store: store.claim(envelopes, worker=worker, lease_s=LEASE_S))

    async def _act(self, id_: str, claimed: Claimed) -> None:
        if claimed.verdict is Claim.WORK:
            try:
                envelope, bad = stored_envelope(claimed.payload or b"", claimed.content_type)
            except InvalidMessage as error:
                kind = {"kind": "InvalidMessage", "message": str(error)}
                await self._site.ask(lambda store: store.note_failure(id_, worker=self._site.worker, error=kind))
                return
            if envelope.pipeline:
                problem = "a task of the cascade cannot be a step of a pipeline; name a task of the site's own models"
                await self._end(envelope, list(_failed(envelope, problem)))
                return
            await self._end(
                envelope, [_malformed(envelope, item, task) for item in bad for task in item.tasks], ends=False
            )
            await self._spool(envelope, claimed)
        elif claimed.verdict in (Claim.CANCELLED, Claim.DEAD):
            envelope = outline(id_, claimed.payload, claimed.content_type)
            state = ResultState.CANCELLED if claimed.verdict is Claim.CANCELLED else ResultState.FAILED
            rows = [_row(envelope, item.seq, task, state, item.key) for item in envelope.items for task in item.tasks]
            dead = [id_] if claimed.verdict is Claim.DEAD else []
            done = [] if dead else [id_]
            await self._site.ask(lambda store: store.commit(rows, done=done, dead=dead))

    async def _spool(self, envelope: Envelope, claimed: Claimed) -> None:
        site = self._site
        left_s = None if claimed.deadline_at is None else claimed.deadline_at - claimed.now
        seqs = [item.seq for item in envelope.items]
        there = await site.ask(lambda store: store.results_of(envelope.job, seqs))
        final = {(row.seq, row.task) for row in there}
        items = [item for item in self._items(envelope, left_s) if (item.seq, item.task) not in final]
        await site.ask(lambda store: store.edge.add(items))
        if not items:  # all results are stored: the process died before the envelope's end
            await site.ask(lambda store: store.commit((), done=[envelope.id]))
        site.rings.set()
        site.sends.set()

    def _items(self, envelope: Envelope, left_s: float | None) -> Iterator[EdgeItem]:
        now_s, tasks, wait_s = self._site.clock.now_s(), self._site.settings.tasks, self._site.settings.wait_s
        for item in envelope.items:
            for task in item.tasks:
                only_at_centre = task in tasks and tasks[task].only_at_centre
                own_s = wait_s or None if left_s is None and only_at_centre else left_s
                yield EdgeItem(
                    job=envelope.job,
                    seq=item.seq,
                    task=task,
                    envelope=envelope.id,
                    state=EdgeState.WAITING if only_at_centre else EdgeState.NEW,
                    priority=int(envelope.priority),
                    tenant=envelope.tenant,
                    key=item.key,
                    params=item.params.get(task),
                    bytes=weight(item.input),
                    queued_at=envelope.queued_at,
                    due_s=None if own_s is None else now_s + own_s,
                )

    async def _end(self, envelope: Envelope, rows: Sequence[Result], *, ends: bool = True) -> None:
        if rows:
            done = [envelope.id] if ends else []
            await self._site.ask(lambda store: store.commit(rows, done=done))

    async def _put_aside(self, message: bytes, cause: str) -> None:
        """Note a message that cannot be worked on where an operator finds it, as a worker does."""
        digest = hashlib.sha256(message).hexdigest()
        refused = RefusedMessage(at=time.time(), queue=EDGE, cause=cause, sha256=digest, bytes=len(message))
        logger.error("refused a message of %s: %s (%d bytes, sha256 %s)", EDGE, cause, refused.bytes, digest)
        redis = self._site.publisher.redis

        def note() -> None:
            with as_unavailable(redis):
                note_refused(redis, refused)

        await asyncio.to_thread(note)

    async def _refuse_undurable(self, message: bytes, raw: object) -> None:
        """Fail the items of an envelope that has no row: nothing would hold them while they wait for the centre."""
        try:
            envelope, _ = decode(raw)
        except InvalidMessage:
            await self._put_aside(message, "is no envelope")
            return
        rows = list(_failed(envelope, "`durable=False` is not for tasks of the cascade; leave it out"))
        await self._site.ask(lambda store: store.commit(rows, unlisted=[envelope.id]))


def _body(message: bytes) -> Any:
    """Return the envelope in a Celery message. Raises InvalidMessage, ValueError or RecursionError."""
    wire = msgspec.json.decode(message)
    if not isinstance(wire, dict) or not isinstance(wire.get("body"), str):
        raise InvalidMessage("no Celery message")
    data = base64.b64decode(wire["body"], validate=True)
    decoder = msgspec.json.decode if wire.get("content-type") == JSON else msgspec.msgpack.decode
    frames: Any = decoder(data)
    if not isinstance(frames, list) or not frames or not isinstance(frames[0], list) or not frames[0]:
        raise InvalidMessage("a Celery message without an argument")
    return frames[0][0]


def _failed(envelope: Envelope, problem: str) -> Iterable[Result]:
    error = {"kind": "InvalidInput", "message": f"task: {problem}"}
    for item in envelope.items:
        for task in item.tasks:
            yield _row(envelope, item.seq, task, ResultState.FAILED, item.key, error)


def _malformed(envelope: Envelope, item: BadItem, task: str) -> Result:
    error = {"kind": "InvalidMessage", "message": item.error}
    return _row(envelope, item.seq, task, ResultState.FAILED, None, error)


def _row(
    envelope: Envelope, seq: int, task: str, state: ResultState, key: str | None, error: dict[str, Any] | None = None
) -> Result:
    return Result(
        job=envelope.job, seq=seq, task=task, envelope=envelope.id, state=state, key=key, error=error, model=EDGE
    )
