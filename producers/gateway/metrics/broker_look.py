"""The fleet as Redis knows it: live workers, waiting messages, memory. The number of commands is bounded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import ResponseError

from producers.wire.edge.told_sites import ToldSite, told_sites
from producers.wire.live_nodes import LiveNode, announcements
from producers.wire.queues import PRIORITY_ENDS, PRIORITY_STEPS, REFUSED, RefusedMessage, queue_name, read

if TYPE_CHECKING:
    from redis import Redis

#: kombu's hash of the messages that workers hold, without those of durable envelopes, which have leases.
UNACKNOWLEDGED = "unacked"


class NodeFigures(LiveNode, frozen=True, kw_only=True):
    """A live node with the figures of its announcement. Without a memory budget its memory is not measured (0)."""

    resident_bytes: int = 0
    budget_bytes: int = 0
    loads: int = 0
    unloads: int = 0
    figures: dict[str, float] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLook:
    """`messages` wait in Redis, by model and priority; `refused` are kept for `argosy dead`. 0 bytes: no limit.

    `refused_at` is the time of the newest refused message, in Unix time.
    """

    nodes: tuple[NodeFigures, ...]
    messages: Mapping[tuple[str, int], int]
    unacknowledged: int
    refused: int
    refused_at: float | None
    memory_bytes: int | None
    most_memory_bytes: int
    sites: tuple[ToldSite, ...] = ()


def look_at_broker(redis: Redis, models: Collection[str], lanes: Collection[int]) -> BrokerLook:
    """Return the state of Redis, with the messages of these models and of those that live nodes serve.

    Raises RedisError.
    """
    nodes = [read(said, NodeFigures) for said in announcements(redis).values() if said is not None]
    live = tuple(node for node in nodes if node is not None)
    lists = dict(_lists({*models, *(name for node in live for name in node.models)}, {0, *lanes}))
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hlen(UNACKNOWLEDGED)
        pipeline.llen(REFUSED)
        pipeline.lindex(REFUSED, 0)
        pipeline.info("memory")
        for key in lists:
            pipeline.llen(key)
        # a key of another type, or a right that is missing (INFO), leaves its own figure unknown
        unacknowledged, refused, newest, memory, *lengths = pipeline.execute(raise_on_error=False)
    messages: dict[tuple[str, int], int] = {}
    for line, length in zip(lists.values(), map(_count, lengths), strict=True):
        if length:
            messages[line] = messages.get(line, 0) + length
    refusal = read(newest, RefusedMessage) if isinstance(newest, bytes) else None
    facts = memory if isinstance(memory, dict) else {}
    return BrokerLook(
        nodes=live,
        messages=messages,
        unacknowledged=_count(unacknowledged),
        refused=_count(refused),
        refused_at=refusal.at if refusal else None,
        memory_bytes=facts.get("used_memory"),
        most_memory_bytes=int(facts.get("maxmemory", 0)),
        sites=_sites(redis),
    )


def _sites(redis: Redis) -> tuple[ToldSite, ...]:
    try:
        return tuple(told_sites(redis))
    except ResponseError:  # as above
        return ()


def _count(answer: Any) -> int:
    return answer if isinstance(answer, int) else 0


def _lists(models: Collection[str], lanes: Collection[int]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the Redis lists of these models, each with its model and priority.

    Other Celery applications send without a tenant, to any of Celery's priorities.
    """
    for model in sorted(models):
        for lane in sorted(lanes):
            queue = queue_name(model, lane)
            yield queue, (model, 0)
            for priority, end in PRIORITY_ENDS:
                if not lane or priority in PRIORITY_STEPS:
                    yield f"{queue}{end}", (model, priority)
