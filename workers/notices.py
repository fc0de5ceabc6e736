"""Telling submitters that envelopes are done: one Redis message each, after their results are committed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from producers.errors import BrokerUnavailable
from producers.publisher import Publisher, as_unavailable
from producers.queues import done_channel

logger = logging.getLogger(__name__)


class Notices:
    """Announces finished envelopes. A notice that cannot be sent is no loss: who waits also looks into the store."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def announce(self, done: Sequence[tuple[str, str]]) -> None:
        """Publish each (job, envelope) of `done` on the job's channel, in one round trip."""
        redis = self._publisher.redis
        try:
            if len(done) == 1:  # as for a lone interactive item: no pipeline to set up
                with as_unavailable(redis):
                    redis.publish(done_channel(done[0][0]), done[0][1])
                return
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for job, envelope in done:
                    pipeline.publish(done_channel(job), envelope)
                pipeline.execute()
        except BrokerUnavailable as error:
            logger.warning("%s; %d notices were not sent", error, len(done))
