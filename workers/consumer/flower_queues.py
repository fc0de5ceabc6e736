"""Flower's page of queues: Flower itself asks workers only once, at its start, and never learns of later queues.

Celery imports this module in the process of Flower, because `workers.consumer.monitoring` names it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from flower.views import BaseHandler

from producers.wire.errors import ArgosyError
from producers.wire.publisher import Publisher
from workers.node import presence

_asked_by_flower = BaseHandler.get_active_queue_names


@cache
def _publisher(broker_url: str) -> Publisher:
    return Publisher(broker_url)


def _active_queue_names(self: Any) -> list[str]:
    """Return the queues that live nodes read, and the queues in which messages wait."""
    try:
        names = presence.queues(_publisher(self.application.broker_uri_with_password))
    except ArgosyError:
        names = set()
    return sorted(names) or list(_asked_by_flower(self))


BaseHandler.get_active_queue_names = _active_queue_names
