"""Telling submitters that envelopes are done: one Redis message each, after their results are committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from producers.wire.errors import BrokerUnavailable
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import done_channel
from results_store.records import Result

logger = logging.getLogger(__name__)

#: Results of more bytes are read from the store.
SMALL_BYTES = 4096


class Notices:
    """Announces finished envelopes. A notice that cannot be sent is no loss: who waits also looks into the store."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def announce(self, done: Sequence[tuple[str, str]], results: Mapping[str, Sequence[Result]]) -> None:
        """Publish each (job, envelope) of `done` on the job's channel, in one round trip; with its results, if they are small."""
        redis = self._publisher.redis
        try:
            if len(done) == 1:  # as for a lone interactive item: no pipeline to set up
                job, envelope = done[0]
                with as_unavailable(redis):
                    redis.publish(done_channel(job), _notice(envelope, results))
                return
            with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
                for job, envelope in done:
                    pipeline.publish(done_channel(job), _notice(envelope, results))
                pipeline.execute()
        except BrokerUnavailable as error:
            logger.warning("%s; %d notices were not sent", error, len(done))


def _notice(envelope: str, results: Mapping[str, Sequence[Result]]) -> bytes:
    """The envelope's id, and after a space its results as JSON, if they are as they will be read from the store."""
    bare = envelope.encode()
    if envelope not in results:
        return bare
    encoded = msgspec.json.encode(results[envelope])
    # the store has no word for NUL and has put another in its place
    if len(encoded) > SMALL_BYTES or b"\\u0000" in encoded:
        return bare
    return bare + b" " + encoded
