"""Hostile and foreign Celery messages, from a seed: each place of a message with values of each JSON type."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from producers.wire.messages import REFERENCE, VERSION, Priority, new_id
from producers.wire.queues import TASK, queue_name, redis_key

#: Stands in a message for a value that is nested too deeply to be encoded.
_DEEP = "?deep?"

#: Levels of nesting: readable by Python's decoder, at its limit, and beyond it.
_LEVELS = (50, 900, 990, 100_000)

_TEXTS = (
    "", "x", "5", "a\nb\x1b[31m", "\0", "\ud800", "x" * 300, "y" * 100_000, "zlib", "utf-16", "base64", "argosy.envelope",
    "1970-01-01T00:00:00", "2999-13-01", "0001-01-01T00:00:00+23:59", "__proto__", "{}", "unacked", "celery",
    "1e99999999",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 3, 9, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, 0.5, -0.0, 1e300, 5e-324)
_INFINITE = (float("inf"), float("-inf"), float("nan"))
_TYPED = ("datetime", "date", "time", "decimal", "uuid", "bytes", "base64", "regex", "x", "", 5, None)

_HEADERS = (
    "task", "id", "root_id", "parent_id", "group", "group_index", "eta", "expires", "retries", "timelimit", "shadow", "lang",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "compression",
    "callbacks", "errbacks", "chain", "chord", "argosy_durable", "redelivered", "hostname", "is_eager", "delivery_info",
    "reply_to", "correlation_id", "priority", "get", "_children", "called_directly", "properties", "x-death",
)  # fmt: skip
_PROPERTIES = (
    "correlation_id", "reply_to", "delivery_info", "delivery_tag", "body_encoding", "priority", "delivery_mode", "expiration",
    "content_type", "headers", "user_id",
)  # fmt: skip
_TASKS = (
    "argosy.echo", "argosy.envelope ", "argosy", "celery.map", "celery.starmap", "celery.chunks", "celery.group",
    "celery.chain", "celery.chord", "celery.chord_unlock", "celery.accumulate", "celery.backend_cleanup", "nobody's",
)  # fmt: skip
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord", "id", "delivery_info")
_ENVELOPE = (
    "version",
    "id",
    "job",
    "model",
    "priority",
    "queued_at",
    "items",
    "deadline_at",
    "durable",
    "tenant",
    "pipeline",
)
_ITEM = ("seq", "input", "tasks", "params", "key", "more")
_INPUTS = (
    "bytes",
    "path",
    "url",
    "blob",
    "question",
    "messages",
    "row",
    "series",
    "text-and-image",
    "seed",
    "derived",
    "x",
)
_SIGNATURE = ("task", "args", "kwargs", "options", "subtask_type", "immutable", "chord_size")


class HostileMessages:
    """An endless sequence of messages, each for a list of Redis. The same seed makes the same kinds in the same order.

    `lanes` are the lanes of the model's queues; `known` is the job and the envelope of somebody else.
    """

    def __init__(self, seed: int | str, model: str, *, lanes: int = 1, known: tuple[str, str] = ("", "")) -> None:
        self._chance = Random(seed)
        self._model = model
        self._lanes = lanes
        self._known = known

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while True:
            chance = self._chance
            lane, priority = chance.randrange(self._lanes), chance.choice(list(Priority))
            yield redis_key(self._model, priority, lane), self._encoded(queue_name(self._model, lane))

    def _encoded(self, queue: str) -> bytes:
        chance = self._chance
        if chance.random() < 0.02:
            return chance.choice([b"", b"{", b"null", b"[]", b"5", b'"x"', b"\xff\xfe", chance.randbytes(40)])
        text = json.dumps(self._message(queue))
        # JSON has no name for an infinite number, but numbers that are read as infinite
        text = text.replace("-Infinity", "-1e999").replace("Infinity", "1e999")
        levels = chance.choice(_LEVELS)
        opened, closed = chance.choice([("[", "]"), ('{"a":', "}")])
        return text.replace(f'"{_DEEP}"', f"{opened * levels}0{closed * levels}").encode()

    def _message(self, queue: str) -> Any:
        chance = self._chance
        task = new_id()
        message: dict[str, Any] = {
            "body": self._body(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"task": TASK, "id": task, "lang": "py", "argsrepr": "hostile", "kwargsrepr": "{}"},
            "properties": {
                "correlation_id": task,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": new_id(),
                "body_encoding": "base64",
                "priority": 0,
            },
        }
        match chance.randrange(10):
            case 0 | 1 | 2:
                for name in chance.sample(_HEADERS, chance.choice([1, 1, 2])):
                    message["headers"][name] = self._value()
            case 3:
                for name in chance.sample(_PROPERTIES, chance.choice([1, 1, 2])):
                    message["properties"][name] = self._value()
            case 4:
                message["headers"]["task"] = chance.choice(_TASKS)
            case 5:
                message[chance.choice([*message, "more"])] = self._value()
            case 6:
                message["headers"] = self._value() if chance.random() < 0.2 else {}
                message["body"] = _base64(self._of_protocol_1())
            case 7 if chance.random() < 0.1:
                message["headers"] |= {f"h{n}": n for n in range(20_000)}
            case _:
                pass  # its body is odd
        return message

    def _body(self) -> str:
        chance = self._chance
        match chance.randrange(8):
            case 0:
                return _base64(self._value())
            case 1:
                return _base64([self._value(), self._value(), self._value()])
            case 2 | 3:
                name = chance.choice(_EMBEDDED)
                value = self._signature() if chance.random() < 0.6 else self._value()
                embedded = {name: value if name == "chord" or chance.random() < 0.2 else [value]}
                return _base64([[self._envelope()], {}, embedded])
            case 4:
                return _base64([[], {"envelope": self._envelope(), **self._named()}, {}])
            case _:
                return _base64([[self._envelope()], {}, dict.fromkeys(_EMBEDDED[:4])])

    def _of_protocol_1(self) -> Any:
        body: dict[str, Any] = {"task": TASK, "id": new_id(), "args": [self._envelope()], "kwargs": {}}
        names = ("task", "id", "args", "kwargs", "eta", "expires", "retries", "utc", "taskset", "chord", "callbacks")
        return body | {self._chance.choice(names): self._value()}

    def _signature(self) -> dict[str, Any]:
        own = {"task": "nobody's", "args": [], "kwargs": {}, "options": {"queue": "nobody"}, "immutable": True}
        return own | {self._chance.choice(_SIGNATURE): self._value()}

    def _envelope(self) -> Any:
        chance = self._chance
        if chance.random() < 0.05:
            return self._value()
        job, envelope = self._known if chance.random() < 0.2 else (new_id(), new_id())
        found: dict[str, Any] = {"version": REFERENCE, "id": envelope, "job": job, "model": self._model, "priority": 0}
        if chance.random() < 0.6:
            items = [self._item(seq) for seq in range(chance.choice([0, 1, 1, 3]))]
            # items without a row, so that no answer of somebody else is forged
            found |= {"version": VERSION, "job": new_id(), "queued_at": 1.0, "items": items, "durable": False}
        if chance.random() < 0.7:
            found[chance.choice(_ENVELOPE)] = self._value()
        return found

    def _item(self, seq: int) -> Any:
        chance = self._chance
        item = {"seq": seq, "input": "a text", "tasks": ["echo"]}
        if chance.random() < 0.2:
            item["input"] = {"type": chance.choice(_INPUTS), **self._named()}
        return item | {chance.choice(_ITEM): self._value()} if chance.random() < 0.8 else self._value()

    def _named(self) -> dict[str, Any]:
        names = ("path", "url", "data", "job", "blob", "text", "image", "seed", "values", "channels", "of", "take", "x")
        return {self._chance.choice(names): self._value()}

    def _value(self, levels: int = 2) -> Any:  # noqa: PLR0911 - a return for each JSON type
        chance = self._chance
        match chance.randrange(9 if levels else 6):
            case 0:
                return chance.choice([None, True, False])
            case 1 | 2:
                return chance.choice(_TEXTS)
            case 3:
                return chance.choice(_INFINITE)
            case 4 | 5:
                return chance.choice(_NUMBERS)
            case 6:
                return [self._value(levels - 1) for _ in range(chance.choice([0, 1, 3]))]
            case 7:
                return {chance.choice(_TEXTS): self._value(levels - 1) for _ in range(chance.choice([0, 1, 2]))}
            case _:
                typed = {"__type__": chance.choice(_TYPED), "__value__": self._value(0)}
                return chance.choice([_DEEP, typed])


def _base64(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()
