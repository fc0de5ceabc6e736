"""The messages that a channel has taken and not acknowledged yet.

A durable envelope's lease is in the store, so Redis keeps no note of its message: taking and acknowledging it costs no
command, and a full Redis can be emptied. Redis notes all other messages, as kombu does, and delivers them again.

The same notes hold the messages that wait for their time: such a message has no slot and no worker, and its note says
that it was taken so long ago that it is delivered again at its time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from producers.wire.publisher import DURABLE
from workers.consumer.foreign_messages import due_at
from workers.consumer.refusals import Refusals

logger = logging.getLogger(__name__)

#: The most messages that are put back at a time.
RESTORED = 100

#: The header of a durable message that says how many times workers have put it back.
RETURNED = "argosy_returned"

#: Note a message although memory is full: the pop of the message has freed more. Needs Redis 7 or Valkey.
_NOTE_IN_FULL_REDIS = """#!lua flags=allow-oom
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
"""


class Note(NamedTuple):
    """The time (Unix) that a message waits for, if it does, and the message as kombu notes it."""

    due: float | None
    text: str


class SentCommands:
    """Commands that Redis has been sent, over a connection of their own. Their `answers` must be read.

    The work that follows them does not wait for Redis.
    """

    def __init__(self, client: Any, commands: Sequence[Sequence[Any]]) -> None:
        """Send the commands. Raises ConnectionError."""
        if hasattr(client, "_prefix_args"):  # kombu's client with a prefix for all keys
            commands = [client._prefix_args(command) for command in commands]  # noqa: SLF001
        self._count = len(commands)
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
        except BaseException:
            self._pool.release(self._connection)
            raise

    def answers(self) -> list[Any]:
        """Wait for the answers; a refusal is an answer. Raises ConnectionError."""
        try:
            return [self._answer() for _ in range(self._count)]
        finally:
            self._pool.release(self._connection)

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error


class QoS(redis.QoS):  # type: ignore[misc] # kombu is untyped
    """kombu's bookkeeping, without Redis for durable envelopes, and for others as far as Redis allows.

    A lone item waits for none of this: its note is sent before it is handed on, but the answer is read afterwards
    (`confirm`), and the note is deleted with the writing of a later one, or by `forget`, which the consumer calls at
    intervals. Until the consumer says so (`forgets_later`), it is deleted at once.
    """

    forgets_later = False
    _sent: tuple[SentCommands, Mapping[str, Note], tuple[str, ...]] | None = None  # with the notes, and deleted ones

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._noted: set[str] = set()  # tags that Redis has notes of
        self._settled: set[str] = set()  # tags whose notes are to be deleted
        self._waiting: set[str] = set()  # tags of messages whose notes say that they wait for their time
        self._turn = threading.RLock()  # one thread sends notes or reads the answer; slots reject messages meanwhile
        self._notes = Refusals("noting messages that are not durable (they are computed nevertheless)")
        super().__init__(*arguments, **options)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Add a taken message. A message of a poll was noted before."""
        raw = message._raw  # noqa: SLF001 - like kombu's own code
        if delivery_tag not in self._noted and (note := note_of(raw, message.delivery_info["routing_key"])):
            self.note({delivery_tag: note})
            self.confirm()
        virtual.QoS.append(self, message, delivery_tag)

    def note(self, notes: Mapping[str, Note]) -> None:
        """Send notes of taken messages, by their tags; `confirm` reads the answer. Raises ConnectionError."""
        if not notes:
            return
        self._send(notes)
        if any(note.due is not None for note in notes.values()):
            self.confirm()  # such a message is not handed on unless it is noted

    def confirm(self) -> None:
        """Read the answer to `note`. The messages are computed even if Redis refuses. Raises ConnectionError."""
        try:
            self._confirm()
        except ResponseError as error:
            self._notes.refused(error)

    def settle(self, tags: Sequence[str]) -> None:
        """Delete the notes about refused messages, and free the slots of those that had one."""
        self._waiting.difference_update(tags)
        self._settled.update(self._noted.intersection(tags))
        self._noted.difference_update(tags)
        try:
            self.forget()
        finally:
            for tag in tags:
                if tag in self._delivered:
                    virtual.QoS.ack(self, tag)

    def is_noted_as_waiting(self, delivery_tag: str) -> bool:
        """Return whether a message is noted to be delivered at its time."""
        return delivery_tag in self._waiting

    def ack(self, delivery_tag: str) -> None:
        """Free the message's slot, and delete the note about it, now or as soon as Redis accepts that."""
        self._waiting.discard(delivery_tag)
        try:
            if delivery_tag in self._noted:
                self._noted.discard(delivery_tag)
                self._settled.add(delivery_tag)
                if not self.forgets_later:
                    self.forget()
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def forget(self) -> None:
        """Delete the notes about acknowledged messages. Those that Redis keeps are deleted later."""
        self.confirm()  # or the deletion might overtake the note
        if not (tags := tuple(self._settled)):
            return
        try:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()
        except ResponseError as error:
            logger.debug("notes about acknowledged messages are deleted later: %s", error)
        else:
            self._settled.difference_update(tags)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Free the message's slot. If `requeue`, put the message back into its list.

        A durable envelope that Redis does not take back is published again by a reconciler.
        """
        if not requeue:
            self.ack(delivery_tag)
            return
        self._waiting.discard(delivery_tag)
        try:
            self.confirm()
            if delivery_tag in self._noted:
                self.restore_by_tag(delivery_tag, leftmost=True)
                self._noted.discard(delivery_tag)
            elif (message := self._delivered.get(delivery_tag)) is not None:
                self._put_back(message)
        except (RedisError, OSError) as error:
            logger.warning("a message was not put back, and comes again later: %s", error)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def put_off(self, message: Any, until: float) -> None:
        """Free the message's slot, and deliver the message again at Unix time `until`."""
        tag = message.delivery_tag
        if tag not in self._waiting:
            raw, queue = message._raw, message.delivery_info["routing_key"]  # noqa: SLF001 - like kombu's own code
            self._send({tag: Note(until, dumps([raw, "", queue]))})
            self._confirm()
        self._waiting.discard(tag)
        self._noted.discard(tag)
        virtual.QoS.ack(self, tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a noted message back. A note that cannot be read is deleted."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a stranger's note raises
            with self.pipe_or_acquire(client=client) as pipe:
                note = pipe.hget(self.unacked_key, tag).zrem(self.unacked_index_key, tag).hdel(self.unacked_key, tag)
                self.channel.refused.note((note.execute()[0] or b"", None, self.unacked_key, error))

    def restore_due(self) -> None:
        """Put back the messages whose time has come."""
        self.restore_visible(num=RESTORED, interval=1)

    def restore_unacked(self, client: Any = None) -> None:
        """Put the noted messages back when the channel closes, if Redis takes them; the others have leases."""
        try:
            self.forget()
            with self.channel.conn_or_acquire(client) as connected:
                for tag in tuple(self._noted):
                    self.restore_by_tag(tag, client=connected)
        except Exception as error:  # noqa: BLE001 - the channel must be closed in any case
            logger.warning("messages were not put back: %s: %s", type(error).__name__, error)
        self._delivered.clear()

    def restore_visible(self, *arguments: Any, **options: Any) -> None:
        """Put back the messages of dead workers whose time is over, and delete notes that Redis kept. Periodic."""
        try:
            super().restore_visible(*arguments, **options)
        except ResponseError as error:
            logger.debug("messages of dead workers are put back later: %s", error)
        self.forget()

    def _send(self, notes: Mapping[str, Note]) -> None:
        with self._turn:
            self.confirm()
            settled = tuple(self._settled)
            commands: list[list[Any]] = []
            if settled:
                commands += [["ZREM", self.unacked_index_key, *settled], ["HDEL", self.unacked_key, *settled]]
            texts = [part for tag, note in notes.items() for part in (tag, note.text)]
            times = [part for tag, at in self._taken_at(notes).items() for part in (at, tag)]
            commands += [["HSET", self.unacked_key, *texts], ["ZADD", self.unacked_index_key, *times]]
            with self.channel.conn_or_acquire() as client:
                self._sent = SentCommands(client, commands), notes, settled
            self._noted.update(notes)

    def _confirm(self) -> None:
        with self._turn:
            if self._sent is not None:
                (sent, notes, settled), self._sent = self._sent, None
                self._read(sent.answers(), notes, settled)

    def _read(self, answers: Sequence[Any], notes: Mapping[str, Note], settled: Sequence[str]) -> None:
        *deleted, text, time_ = answers
        if not any(isinstance(answer, ResponseError) for answer in deleted):
            self._settled.difference_update(settled)
        refusal = next((answer for answer in (text, time_) if isinstance(answer, ResponseError)), None)
        try:
            if isinstance(refusal, OutOfMemoryError):
                self._note_in_full_redis(notes)
            elif refusal:
                raise refusal
        except ResponseError:
            self._noted.difference_update(notes)
            raise
        self._notes.accepted()
        self._waiting.update(tag for tag, note in notes.items() if note.due is not None)

    def _note_in_full_redis(self, notes: Mapping[str, Note]) -> None:
        prefix = self.channel.global_keyprefix  # kombu does not put it before the keys of a script
        keys = [prefix + self.unacked_index_key, prefix + self.unacked_key]
        with self.channel.conn_or_acquire() as client:
            for tag, at in self._taken_at(notes).items():
                client.eval(_NOTE_IN_FULL_REDIS, len(keys), *keys, at, tag, notes[tag].text)

    def _taken_at(self, notes: Mapping[str, Note]) -> dict[str, float]:
        """Return the times (Unix) at which the messages were taken, as their notes say, by tag."""
        now, wait_s = time.time(), self.visibility_timeout
        return {tag: now if note.due is None else note.due - wait_s for tag, note in notes.items()}

    def _put_back(self, message: Any) -> None:
        info = message.delivery_info
        headers = message._raw["headers"]  # noqa: SLF001 - as below
        headers[RETURNED] = times_returned(headers) + 1
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(  # noqa: SLF001 - like kombu's own code
                message._raw,  # noqa: SLF001
                info["exchange"],
                info["routing_key"],
                client,
            )


def times_returned(headers: Any) -> int:
    """Return how many times workers have put a message back, by its headers."""
    said = headers.get(RETURNED)
    return said if isinstance(said, int) else 0


def note_of(raw: Any, queue: str) -> Note | None:
    """Return the note about a message of a queue; none if its lease is in the store, and it does not wait."""
    headers = raw.get("headers")
    known = headers if isinstance(headers, dict) else {}
    due = _due(known.get("eta"))
    return None if due is None and known.get(DURABLE) else Note(due, dumps([raw, "", queue]))


def _due(eta: Any) -> float | None:
    """Return the time (Unix) that a message waits for, if it is in the future."""
    if eta is None:
        return None
    try:
        due = due_at(eta)
    except (TypeError, ValueError, OverflowError):  # it is refused later
        return None
    return due if due > time.time() else None
