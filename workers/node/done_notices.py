"""Notify submitters of finished envelopes: a Redis message for each, after its results are committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import done_channel
from results_store.records import Result

logger = logging.getLogger(__name__)

#: Larger results are not part of a notice; clients read them from the store.
SMALL_BYTES = 4096


class DoneNotices:
    """Announces finished envelopes. A lost notice does no harm, because waiting clients also poll the store."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def announce(self, done: Sequence[tuple[str, str]], results: Mapping[str, Sequence[Result]]) -> None:
        """Publish each (job, envelope) of `done` on the job's channel, with small results, in a single round trip."""
        redis = self._publisher.redis
        try:
            if len(done) == 1:  # a single interactive item needs no pipeline
                job, envelope = done[0]
                with as_unavailable(redis):
                    redis.publish(done_channel(job), _notice(envelope, results))
                return
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for job, envelope in done:
                    pipeline.publish(done_channel(job), _notice(envelope, results))
                pipeline.execute()
        except (BrokerUnavailable, Overloaded) as error:
            logger.warning("%s; %d notices were not sent", error, len(done))


def _notice(envelope: str, results: Mapping[str, Sequence[Result]]) -> bytes:
    """Return the envelope's id and, after a space, its results as JSON, if these equal the stored ones."""
    bare = envelope.encode()
    if envelope not in results:
        return bare
    encoded = msgspec.json.encode(results[envelope])
    # the store cannot hold NUL and has replaced it
    if len(encoded) > SMALL_BYTES or b"\\u0000" in encoded:
        return bare
    return bare + b" " + encoded
