"""Queue names, priorities and the transport settings that producers and workers must agree on."""

from __future__ import annotations

from producers.wire.messages import Priority

#: The Celery task that runs an envelope; the name that Flower shows.
TASK = "argosy.envelope"

#: Redis lists are kept per priority; kombu polls them in this order across all of a worker's queues.
PRIORITY_STEPS = sorted(int(priority) for priority in Priority)

#: kombu's separator between a queue's name and its priority in the Redis key.
PRIORITY_SEPARATOR = "\x06\x16"


def queue_name(model: str, lane: int = 0) -> str:
    """Return the queue that carries a model's envelopes of one lane: one Redis list a priority.

    Tenants have lanes of their own, so that they take turns; lane 0 is that of whoever names no tenant.
    """
    return f"argosy.{model}/{lane}" if lane else f"argosy.{model}"


def redis_key(model: str, priority: Priority, lane: int = 0) -> str:
    """Return the Redis list that holds a model's envelopes of one priority and lane, as kombu names it.

    kombu leaves the suffix off for priority 0 (``kombu.transport.redis.Channel._q_for_pri``).
    """
    queue = queue_name(model, lane)
    return f"{queue}{PRIORITY_SEPARATOR}{int(priority)}" if priority else queue


def done_channel(job: str) -> str:
    """Return the pub/sub channel on which a job's finished envelopes are announced, after their commit."""
    return f"argosy.done.{job}"


def text_channel(job: str, seq: int) -> str:
    """Return the pub/sub channel on which the text of a job's item is told piece by piece, while it is written."""
    return f"argosy.text.{job}.{seq}"
