"""Celery's settings in the process of Flower, which has no application of ours: CELERY_CONFIG_MODULE names them."""

from __future__ import annotations

from producers.wire.sockets import CONSUMER

broker_transport_options = CONSUMER
imports = ["workers.consumer.flower_queues"]
