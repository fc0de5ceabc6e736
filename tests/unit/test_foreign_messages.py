"""What a Celery message says beside its envelope: the checks before its task runs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from celery.canvas import Signature, chunks, group
from kombu.utils.json import dumps, loads

from producers.wire.errors import InvalidMessage
from producers.wire.messages import JSON, decode
from workers.consumer.foreign_messages import MOST_SENT, check_body, make_sound


def check(embedded: object) -> None:
    check_body([[{"model": "m", "items": []}], {}, embedded], "argosy.envelope")


@pytest.mark.parametrize("embedded", [None, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
def test_a_message_without_further_tasks_is_run(embedded: object) -> None:
    check(embedded)


@pytest.mark.parametrize("name", ["id", "delivery_info", "reply_to", "is_eager", "task", "hostname"])
@pytest.mark.parametrize("value", [[], {}, None, "x", 5])
def test_a_body_overrides_nothing_of_its_request(name: str, value: object) -> None:
    """Celery would take the field for the request's own: a list for an id fails where the failure is stored."""
    with pytest.raises(InvalidMessage, match="last part"):
        check({name: value})


TASK = Signature("my.task", app=None)
CHUNKS = loads(dumps(chunks(TASK, [[number] for number in range(5)], 1)))


def test_chunks_are_sent_to_a_worker_that_makes_them() -> None:
    """A signature of this type would have Celery send a message for each of any number of values here."""
    check({"callbacks": [CHUNKS]})
    forged = CHUNKS | {"subtask_type": "chunks"}
    del forged["task"]
    for embedded in (
        {"callbacks": [forged]},
        {"chord": forged},
        {"chain": [loads(dumps(group(TASK, app=None))) | {"kwargs": {"tasks": [forged]}}]},
    ):
        with pytest.raises(InvalidMessage, match="subtask_type"):
            check(embedded)


def test_a_group_of_too_many_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="over 1,000 tasks"):
        check({"chain": [{"subtask_type": "group", "kwargs": {"tasks": [dict(TASK)] * MOST_SENT}, "options": {}}]})
    check({"chain": [dict(TASK)] * MOST_SENT})


@pytest.mark.parametrize("number", ["1e999999999", "-1e999999999", "1e-999999999", "0e999999999", "9" * 10_000])
def test_a_number_that_would_take_hours_is_refused(number: str) -> None:
    """As a whole number it has a billion digits, which one call computes while no other thread of the process runs."""
    with pytest.raises(ValueError, match="too large an exponent"):
        loads(dumps({"__type__": "decimal", "__value__": number}))
    assert loads(dumps(Decimal("1.50"))) == Decimal("1.50")


@pytest.mark.parametrize("form", ["application/data", "application/text", "application/x-python-serialize", None, []])
def test_another_content_type_is_refused_unopened(form: object) -> None:
    """For some of them kombu takes the encoding for the name of a codec, and unpacks the body: also of a broadcast."""
    raw = {"content-type": form, "content-encoding": "zlib", "headers": {}, "properties": {}, "body": ""}
    with pytest.raises(InvalidMessage, match="content type"):
        make_sound(raw, "a queue", ())


def sound(held: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Return the properties by which kombu handles a message that has these."""
    raw = {"content-type": JSON, "headers": {}, "properties": properties}
    tag = make_sound(raw, "a queue", held)
    assert properties["delivery_tag"] == tag
    return properties


@pytest.mark.parametrize("tag", [None, "", 5, [], {}, "taken"])
def test_a_tag_is_a_text_and_nobody_elses(tag: object) -> None:
    """Two messages of one tag would be one note in Redis, and the first that ends would delete it."""
    found = sound(("taken",), delivery_tag=tag)["delivery_tag"]
    assert isinstance(found, str)
    assert found not in ("", "taken")
    assert sound(("taken",), delivery_tag="free")["delivery_tag"] == "free"


def test_a_message_goes_back_where_it_came_from() -> None:
    for info in (None, [], {"exchange": "x", "routing_key": []}, {"exchange": {}, "routing_key": "unacked"}):
        assert sound(delivery_info=info)["delivery_info"] == {"exchange": "", "routing_key": "a queue"}


@pytest.mark.parametrize("priority", [[], {}, "x", "", float("inf"), float("nan")])
def test_a_priority_that_is_no_number_is_refused(priority: object) -> None:
    """The channel counts the messages that run by their priorities: one of these would end the worker."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        sound(priority=priority)
    assert [sound(priority=given)["priority"] for given in (-5, 0, "3", 9, 10**6)] == [0, 0, 3, 9, 9]


@pytest.mark.parametrize("name", ["unacked", "unacked_index", "_kombu.binding.x", "a\nb", "a\0", "x" * 300, [], {}, 5])
@pytest.mark.parametrize("option", ["queue", "exchange", "routing_key"])
def test_a_task_goes_to_a_queue_only(name: object, option: str) -> None:
    """Not to a key of Redis that is kombu's own."""
    with pytest.raises(InvalidMessage, match=f"{option} is not a queue's name"):
        check({"callbacks": [dict(TASK) | {"options": {option: name}}]})


def envelope(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"version": 1, "id": "e", "job": "j", "model": "m", "priority": 0, "queued_at": 1.0, "items": items} | fields


def test_items_with_the_same_number_and_task_are_told_apart() -> None:
    """The store has one row for them: the first keeps it, and each other fails in a row of its own."""
    given = [("a", "echo"), ("b", "echo"), ("c", "shout"), (5, "echo")]
    found, bad = decode(envelope(*({"seq": 0, "input": text, "tasks": [task]} for text, task in given)))
    assert [(item.seq, item.input) for item in found.items] == [(0, "a"), (0, "c")]
    assert [(item.seq, item.tasks) for item in bad] == [(1, ("echo",)), (3, ("echo",))]
    assert bad[0].error == "items[1]: has the `seq` and a task of an earlier item"


@pytest.mark.parametrize("name", ["queued_at", "deadline_at"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_time_that_is_none_is_refused(name: str, value: float) -> None:
    """One such row broke every list that it was in, and one such deadline the order of all deadlines."""
    with pytest.raises(InvalidMessage, match=name):
        decode(envelope(**{name: value}))
    assert decode(envelope(deadline_at=1e300))[0].deadline_at == 1e300
