"""Celery's Redis transport, guarded against invalid messages, broken connections and a Redis that refuses commands.

Any client of the broker can put anything on a queue. Stock kombu and Celery let some messages (no JSON, no properties,
an odd header) raise in the consumer's loop: the worker ends and returns the message, and the next worker ends too; or
the message is never acknowledged and keeps a slot. Here a message that raises anything before its task runs is refused:
acknowledged, logged, and noted with its cause and digest in a list in Redis, for `argosy dead`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from queue import Empty
from time import monotonic
from typing import Any

from kombu.asynchronous import get_event_loop
from kombu.transport import redis
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - the class that kombu expects
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's, not Python's
)

from producers.wire.messages import Priority
from producers.wire.queues import PRIORITY_ENDS, put_aside, queue_of
from workers.consumer.foreign_messages import check_headers, make_sound
from workers.consumer.refusals import Refusals
from workers.consumer.refused_messages import Refused, RefusedMessages, cause_of, encoded
from workers.consumer.remote_control import dropped
from workers.consumer.unacknowledged import Note, QoS, note_of
from workers.node.intake import Intake, Listed, Unbounded
from workers.node.lanes import may_take, may_take_more


class Client(Redis):
    """A client to which a refused PING is an answer: MISCONF and BUSY refuse PING, too."""

    def ping(self, **options: Any) -> Any:
        try:
            return super().ping(**options)
        except ResponseError:
            return True


#: A lost connection, which is no fault of the message.
LOST = (ConnectionError, TimeoutError, ResponseError)

#: The interval at which Redis is asked again for a list that had its part of the slots.
POLL_S = 0.02

#: A list that nobody writes to: a poll that takes from no other waits for `POLL_S`.
NO_LIST = "argosy.none"

#: After a poll that emptied a list and found a message to refuse, the next one waits for this time.
PAUSE_S = 0.01

#: A consumer that stops waits for so many seconds longer than Redis for the answer of its last poll.
LAST_ANSWER_S = 0.5

#: One message in so many is of the least urgent lists, so that no flood of urgent messages keeps them waiting. Until
#: then urgent messages come together. Each wait for Redis is a wait for the interpreter's lock, too, so a flood of
#: messages that come one by one takes all the time of the consumer's thread.
LEAST_URGENT_FIRST = 8


class Channel(redis.Channel):  # type: ignore[misc] # kombu is untyped
    """Refuse messages that raise, and raise ConnectionError if the connection is closed.

    If Redis refuses a command, the channel stays: it takes no messages for a while and then asks again. Refused events
    and replies to remote control are dropped.

    From each list (a queue's messages of one priority) it takes no more than `may_take` allows of the prefetch count,
    and only what its `intake` chooses.
    Its own lists are those of `priority_steps`, to which it also sends. It reads other applications' lists while they
    have messages. More urgent lists come first, but for one message in `LEAST_URGENT_FIRST`.
    """

    QoS = QoS

    #: Decides from which lists messages are taken.
    intake: Intake = Unbounded()

    _kept_client: tuple[Any, Any] | None = None  # the pool, and its client
    #: Called with a message that is refused before its task runs, and the error.
    on_refused: Callable[[dict[str, Any], BaseException], object] = staticmethod(lambda message, error: None)
    #: Called with the request of a message that is discarded because its task was revoked, and the reason.
    on_revoked: Callable[[Any, str], object] = staticmethod(lambda request, reason: None)

    _others: Mapping[str, tuple[str, int]] = {}  # other applications' lists with messages: queue and priority
    _taken = 0  # messages since the least urgent lists came first
    _together: str | None = None  # the list from which the poll under way takes several messages
    _more = 0  # as many after the first one, at most
    _takes_several = True  # whether Redis allows that

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._taking = Refusals("taking envelopes")
        self._hearing = Refusals("hearing remote control")
        self._telling = Refusals("sending events and replies to Flower")
        #: The messages that are not run.
        self.refused = RefusedMessages(self.conn_or_acquire)
        self._pauses_until = 0.0  # by the steady clock
        self._unanswered: set[str] = set()  # queues whose messages nobody acknowledges, as replies to remote control
        super().__init__(*arguments, **options)

    def _get_client(self) -> Any:
        return super()._get_client() if self.global_keyprefix else Client

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return the same client as long as its pool lasts.

        Making a client costs more than its commands, and each message needs a client three times. A client on a pool
        holds no connection, so any thread may use it.
        """
        if asynchronous:
            return super()._create_client(asynchronous)
        pool, kept = self.pool, self._kept_client
        if kept is None or kept[0] is not pool:
            kept = self._kept_client = pool, super()._create_client()
        return kept[1]

    def close(self) -> None:
        """Close the channel, and then the connection that kombu opens meanwhile.

        After closing the connections, kombu puts unacknowledged messages back over a new connection, which it forgets.
        Before, it waits for the last answer, which never comes over a silent connection.
        """
        try:
            self.refused.flush()
            if self._in_poll:
                with suppress(Empty, *self.connection_errors):
                    self._brpop_read()
            super().close()
        finally:
            self._disconnect_pools()

    def end_poll(self) -> None:
        """Read the answer of a poll under way, if it comes in time. Messages that nobody consumes any more go back to
        their lists. Raises one of `connection_errors`.
        """
        if self._in_poll and self._in_poll.can_read(timeout=self.brpop_timeout + LAST_ANSWER_S):
            with suppress(Empty):
                self._brpop_read()

    def basic_consume(self, queue: str, no_ack: bool, *arguments: Any, **options: Any) -> Any:
        """Begin to take messages of a queue."""
        (self._unanswered.add if no_ack else self._unanswered.discard)(queue)
        return super().basic_consume(queue, no_ack, *arguments, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._taking.waiting or monotonic() < self._pauses_until:
            return
        try:
            self._send_brpop(timeout)
        except ResponseError as error:  # of the PING that redis-py sends over an idle connection
            self._in_poll = None
            self._taking.refused(error)

    def _send_brpop(self, timeout: float | None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [(queue, priority) for priority in self.priority_steps for queue in queues]
        held = self.held()
        free = self.qos.prefetch_count - held.total()
        wanted = [key for key in lists if may_take(held[key], free)]
        everything = not self.qos.prefetch_count or len(wanted) in (0, len(lists))
        chosen = self.intake.choose(lists if everything else wanted, self)
        keys = self._keys(chosen.lists)
        more = LEAST_URGENT_FIRST - 2 - self._taken  # with this poll's first message
        keys.sort(key=itemgetter(0), reverse=more < 0)
        if more < 0:
            self._taken = -1
        keys += self._keys(chosen.last)
        wait_s = (self.brpop_timeout if timeout is None else timeout) if everything and chosen.all else POLL_S
        command = "BLPOP" if chosen.newest else "BRPOP"  # their answers have the same form
        arguments = [command, *([name for _, name in keys] or [NO_LIST]), wait_s]
        if self.global_keyprefix:
            arguments = self.client._prefix_args(arguments)  # noqa: SLF001 - like kombu's own code
        commands = [arguments]
        if self.qos.prefetch_count and keys:
            more = min(more, may_take_more(held[queue_of(keys[0][1]), Priority.INTERACTIVE], free))
        several = more > 0 and keys and keys[0][0] == Priority.INTERACTIVE and chosen.several and self._takes_several
        self._together, self._more = (keys[0][1], more) if several else (None, 0)
        if self._together:  # Redis runs this when the first command ends, so both answers come at once
            commands.append(["RPOP", self.global_keyprefix + self._together, more])
        self._in_poll = connection = self.client.connection
        self._brpop_sent_at = monotonic()
        connection.send_packed_command(connection.pack_commands(commands))

    def _keys(self, lists: Sequence[Listed]) -> list[tuple[int, str]]:
        """Return priorities and names of lists, and of other applications' lists that belong to them."""
        others = self._others.items()
        return [
            *((priority, self._q_for_pri(queue, priority)) for queue, priority in lists),
            *((priority, name) for name, (queue, priority) in others if (queue, self.priority(priority)) in lists),
        ]

    def look_at_others(self) -> None:
        """Look which lists of other applications have messages. These lists are read until the next look."""
        queues = self.active_queues
        lists = {queue + end: (queue, priority) for queue in queues for priority, end in PRIORITY_ENDS}
        for queue in queues:
            for step in self.priority_steps:
                lists.pop(self._q_for_pri(queue, step), None)
        self._others = {}
        if not lists:
            return
        with suppress(ResponseError), self.conn_or_acquire() as client:
            if client.exists(*lists):
                with client.pipeline(transaction=False) as pipe:
                    for name in lists:
                        pipe.llen(name)
                    answers = dict(zip(lists, pipe.execute(raise_on_error=False), strict=True))
                self._others = {name: lists[name] for name, length in answers.items() if _is_length(length)}
                if wrong := [name for name, answer in answers.items() if str(answer).startswith("WRONGTYPE")]:
                    put_aside(client, dict.fromkeys(wrong, "list"))

    def lengths(self, lists: Sequence[tuple[str, int]]) -> list[int]:
        """Return the lengths of lists, by the name of the queue and priority. If Redis refuses, each has a message."""
        with suppress(ResponseError), self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for queue, priority in lists:
                pipe.llen(self._q_for_pri(queue, priority))
            return [int(length) for length in pipe.execute()]
        return [1] * len(lists)

    def held(self) -> Counter[tuple[str, int]]:
        """Return the number of unacknowledged messages here, by list. Thread-safe."""
        # Other threads acknowledge meanwhile: a slightly old copy is enough.
        gone = set(self.qos._dirty)  # noqa: SLF001 - kombu counts them so
        held = [message for tag, message in list(self.qos._delivered.items()) if tag not in gone]  # noqa: SLF001
        return Counter(self._list_of(message) for message in held)

    def _list_of(self, message: Any) -> tuple[str, int]:
        return message.delivery_info["routing_key"], self.priority(message.properties.get("priority") or 0)

    def _connparams(self, *args: Any, **options: Any) -> Any:
        # A thread acknowledges on the channel of its message. If kombu has closed the channel meanwhile, an
        # AttributeError would end the worker; a ConnectionError is expected at all these places.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker was lost, and this channel with it")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> bool:
        # kombu's own, but that more messages may come with the first one
        client = self.client
        taken: list[tuple[bytes, str]] = []
        try:
            refused = self._take("BRPOP", taken, options)
            if self._together and self._take("RPOP", taken, options) and not refused:
                self._takes_several = False
        except self.connection_errors:
            client.connection.disconnect()
            if not taken:
                raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if refused:
            client.connection.disconnect()
            self._taking.refused(refused)
            if str(refused).startswith("WRONGTYPE"):
                self._put_aside_lists()
        else:
            self._taking.accepted()
        if not taken:
            raise Empty from refused
        self._deliver(taken)
        return True

    def _take(self, command: str, taken: list[tuple[bytes, str]], options: Mapping[str, Any]) -> ResponseError | None:
        """Read the answer of a command of the poll: append its messages with their queues, or return its refusal."""
        try:
            answer = self.client.parse_response(self.client.connection, command, **options)
        except ResponseError as error:
            return error
        if answer:
            key, messages = (answer[0].decode(), answer[1:]) if command == "BRPOP" else (self._together or "", answer)
            taken += [(data, queue_of(key)) for data in messages]
            self._taken += len(messages)
        return None

    def _deliver(self, taken: Sequence[tuple[bytes, str]]) -> None:
        """Give messages with their queues to the consumer. Those that raise are refused."""
        lost: Exception | None = None
        sound, refused = self._sound(taken)
        try:
            self.qos.note({tag: note for tag, (*_, note) in sound.items() if note})
        except LOST as error:
            lost = error
        unsettled = []
        for tag, (data, raw, queue, _) in sound.items():
            try:
                self.connection._deliver(raw, queue)  # noqa: SLF001 - like kombu's own code
            except LOST as error:
                lost = error
            except Exception as error:  # noqa: BLE001 - whatever a stranger's message raises, wherever
                refused.append((data, raw, queue, error))
                unsettled.append(tag)
        try:
            self.qos.confirm()
        except LOST as error:
            lost = error
        if refused:
            self._pause(len(taken))
            self.refused.note_soon(refused)
            self.qos.settle(unsettled)
            for _, raw, _, cause in refused:
                if isinstance(raw, dict):
                    self.on_refused(raw, cause)
        if lost:
            raise lost

    def _pause(self, taken: int) -> None:
        """Let messages gather in a list that the poll emptied: a poll costs more than the refusal of a message."""
        if taken <= self._more and (hub := get_event_loop()):
            self._pauses_until = monotonic() + PAUSE_S
            hub.call_later(PAUSE_S, _go_on)

    def _sound(
        self, taken: Sequence[tuple[bytes, str]]
    ) -> tuple[dict[str, tuple[bytes, Any, str, Note | None]], list[Refused]]:
        """Read messages. Return the sound ones by tag, each with its note, and the others."""
        held = self.qos._delivered  # noqa: SLF001 - like kombu's own code
        sound: dict[str, tuple[bytes, Any, str, Note | None]] = {}
        refused: list[Refused] = []
        for data, queue in taken:
            self._queue_cycle.rotate(queue)
            raw = None
            try:
                raw = loads(data.decode())
                tag = make_sound(raw, queue, held, sound)
                note = None
                if queue not in self._unanswered:
                    check_headers(raw.get("headers"))  # before it is noted, so that a flood of refusals costs less
                    note = note_of(raw, queue)
                sound[tag] = data, raw, queue, note
            except Exception as error:  # noqa: BLE001 - as in `_deliver`
                refused.append((data, raw, queue, error))
        return sound, refused

    def _put_aside_lists(self) -> None:
        """Rename keys of other types among the lists: a single one has Redis refuse to pop from any."""
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in self.active_queues]
        with suppress(RedisError, OSError), self.conn_or_acquire() as client:
            put_aside(client, dict.fromkeys(keys, "list"))

    def _do_restore_message(
        self, payload: Any, exchange: Any, routing_key: Any, pipe: Any, leftmost: bool = False
    ) -> None:
        """Put a noted message back into its list. An older worker may have noted a message that has none."""
        try:
            make_sound(payload, routing_key)
            priority, data = payload["properties"].get("priority") or 0, dumps(payload)
            lists = [self._q_for_pri(queue, priority) for queue in self._lookup(exchange, routing_key)]
        except LOST:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self.refused.note((encoded(payload), payload, routing_key, error))
            return
        for key in lists:
            (pipe.lpush if leftmost else pipe.rpush)(key, data)

    def _subscribe(self) -> None:
        if not self._hearing.waiting:
            super()._subscribe()

    def _receive(self) -> Any:
        try:
            received = super()._receive()
        except ResponseError as error:
            self._hearing.refused(error)
            raise Empty from error
        self._hearing.accepted()
        return received

    def _receive_one(self, c: Any) -> bool | None:
        # kombu's own, which logs a message that it cannot read, but lets the others raise
        try:
            response = c.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        if not isinstance(response, list | tuple):
            return None
        received = self._handle_message(c, response)
        if received["type"] not in (b"message", b"pmessage") or not received["data"]:
            return None
        exchange = received["channel"].decode().partition(".")[2].partition("/")[0]
        try:
            message = loads(received["data"].decode())
            make_sound(message, exchange)
            self._deliver_fanout_message(message, exchange)
        except LOST:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            dropped(cause_of(error))
        return True

    def _put_fanout(self, *arguments: Any, **options: Any) -> None:
        try:
            super()._put_fanout(*arguments, **options)
        except ResponseError as error:
            self._telling.refused(error)
        else:
            self._telling.accepted()

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        try:
            super()._put(queue, message, **options)
        except ResponseError as error:
            if not queue.endswith(".pidbox"):  # the replies' queues
                raise
            self._telling.refused(error)

    def _queue_bind(self, *arguments: Any) -> None:
        # Only a sender that names an exchange needs the binding, and it makes one itself.
        with suppress(ResponseError):
            super()._queue_bind(*arguments)

    def _delete(self, *arguments: Any, **options: Any) -> None:
        with suppress(ResponseError):  # the queue of a closed channel's remote control expires by itself
            super()._delete(*arguments, **options)

    def _size(self, queue: str) -> int:
        try:
            size: int = super()._size(queue)
        except ResponseError:  # asked for when a queue is declared, and not used
            return 0
        return size


class Transport(redis.Transport):  # type: ignore[misc] # kombu is untyped
    """kombu's Redis transport with the guarded channel. An unexpected refusal of Redis is like a lost connection."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, ResponseError)


class SentinelChannel(Channel, redis.SentinelChannel):  # type: ignore[misc] # kombu is untyped
    """The guarded channel to the master that sentinels name."""

    from_transport_options = redis.SentinelChannel.from_transport_options


class SentinelTransport(Transport):
    """The guarded transport, by way of sentinels."""

    default_port = 26379
    Channel = SentinelChannel


def _is_length(answer: Any) -> bool:
    """Return whether an answer says that a list has messages. A refusal may be of a single key."""
    return isinstance(answer, int) and answer > 0


def _go_on() -> None:
    """Do nothing: a timer of the loop has it poll."""
