"""Logs as JSON: an object a line, whatever is logged, with the ids at work."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from producers.wire.connection import Connection, log_settings
from producers.wire.errors import ConfigurationError
from results_store.loops.log_lines import JsonLines, Throttle, about


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("tests.json")
    logger.addHandler(handler)
    yield out
    logger.removeHandler(handler)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_an_object(out: io.StringIO) -> None:
    """With the fields of its thread and of its call; the formatter's own fields cannot be replaced."""
    logger = logging.getLogger("tests.json")
    with about(job="j", envelope="e"):
        with about(batch="b"):
            logger.warning("%d of %s", 3, "five", extra={"task": "topic", "level": "fake"})
        logger.error("next")
    logger.error("last")
    first, second, third = lines(out)
    assert {name: first[name] for name in ("message", "level", "logger", "job", "envelope", "batch", "task")} == {
        "message": "3 of five", "level": "WARNING", "logger": "tests.json",
        "job": "j", "envelope": "e", "batch": "b", "task": "topic",
    }  # fmt: skip
    assert first["timestamp"].endswith("+00:00")
    assert (second["job"], "batch" in second, "job" in third) == ("j", False, False)


def test_threads_have_fields_of_their_own(out: io.StringIO) -> None:
    """A slot must not log under another slot's envelope."""
    with about(envelope="mine"):
        thread = threading.Thread(target=lambda: logging.getLogger("tests.json").error("theirs"))
        thread.start()
        thread.join()
    assert "envelope" not in lines(out)[0]


def test_nothing_forges_a_line(out: io.StringIO) -> None:
    """Names are data of strangers, and a traceback has many lines."""
    logger = logging.getLogger("tests.json")
    try:
        raise KeyError("no\nsuch")
    except KeyError:
        logger.exception("a\nb\u2028c\u202ed\x1b[2J", extra={"odd": object(), "nothing": None, "many": [1, "\n"]})
    text = out.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    [line] = lines(out)
    assert line["message"] == "a\nb\u2028c\u202ed\x1b[2J"
    assert "KeyError" in line["exception"]
    assert line["nothing"] is None


def test_the_switch_is_in_the_file_or_in_the_environment(tmp_path: Any) -> None:
    """The environment wins; a wrong word is refused by name."""
    file = tmp_path / "fleet.toml"
    file.write_text('[log]\nformat = "json"\n')
    assert log_settings(file, {}).format == "json"
    assert log_settings(file, {"ARGOSY_LOG_FORMAT": "TEXT"}).format == "text"
    assert Connection(environment={"ARGOSY_FLEET": str(file)}).log.format == "json"
    assert Connection(environment={"HOME": str(tmp_path), "ARGOSY_HOME": str(tmp_path)}).log.format == "text"
    with pytest.raises(ConfigurationError, match=r"ARGOSY_LOG_FORMAT\.format"):
        log_settings(None, {"ARGOSY_LOG_FORMAT": "xml"})
    file.write_text('[log]\nformat = "xml"\n')
    with pytest.raises(ConfigurationError, match=r"fleet\.toml: log\.format"):
        log_settings(file, {})


def test_a_flood_of_lines_is_cut_and_counted() -> None:
    """So many lines a second of a logger; the first one after them says how many were left out."""
    throttle = Throttle(most_per_s=3)
    lines = [logging.makeLogRecord({"msg": "refused %d", "args": (n,), "created": 7.5}) for n in range(10)]
    passed = [line.getMessage() for line in lines if throttle.filter(line)]
    assert passed == ["refused 0", "refused 1", "refused 2"]
    after = [logging.makeLogRecord({"msg": "refused %d", "args": (n,), "created": 8.0}) for n in (10, 11)]
    assert [line.getMessage() for line in after if throttle.filter(line)] == [
        "refused 10 (7 lines of this kind were left out before)",
        "refused 11",
    ]
