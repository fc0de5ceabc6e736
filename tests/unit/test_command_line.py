"""Names of jobs, keys and files are data of strangers, wherever a person reads them: W12, W17 and W20 of the cases."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from click import UsageError

from producers.commands import submit_progress
from producers.commands.tables import jobs_table, show_job
from producers.wire import command_line
from producers.wire.errors import InvalidInput
from results_store.records import JobStatus

#: A name, and how a terminal and a log show it.
NAMES = [
    ("[/x]", "[/x]"),
    ("[link=https://example.org]here[/link]", "[link=https://example.org]here[/link]"),
    (":boom:", ":boom:"),
    ("\x1b[2Jgone", "\\x1b[2Jgone"),
    ("\x9b2Jgone", "\\x9b2Jgone"),
    ("safe\u202egpj.exe", "safe\\u202egpj.exe"),
    ("marks\u200e\u200f\u061c", "marks\\u200e\\u200f\\u061c"),
    ("one\ntwo\r\u2028three", "one\\ntwo\\r\\u2028three"),
    ("lone \ud800", "lone \\ud800"),
    ("né 日本 👨‍👩‍👧 עברית", "né 日本 👨‍👩‍👧 עברית"),
]


def test_an_interrupted_submission_says_what_this_run_has_added(capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier run of the same command may have added more."""
    source: Any = SimpleNamespace(share_read=0.5)

    def interrupted() -> None:
        with submit_progress.counting(source) as count:
            count("j", 4096)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = capsys.readouterr().err
    assert "this run has added at least 4,096 items to job j; run the command again to resume, or" in said


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_a_name_is_text_in_the_terminal(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = JobStatus(
        id="j", name=name, priority=3, created_at=0.0, finished_at=None, cancelled_at=None,
        items=1, total=1, succeeded=0, failed=0, cancelled=0, expired=0,
    )  # fmt: skip
    command_line.console().print(jobs_table([job]))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2
    assert shown in table[1]
    show_job(job)
    assert f"name      {shown}\n" in capsys.readouterr().out
    command_line.say(f"job {name}", err=True)
    assert capsys.readouterr().err == f"job {shown}\n"


@pytest.mark.parametrize(
    "error", [InvalidInput("job", "\x1b[2Jgone"), UsageError("\x1b[2Jgone"), OSError("\x1b[2Jgone")]
)
def test_a_name_in_an_error_is_text(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    group = command_line.CommandLine("argosy")

    @group.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit):
        group.main(["fail"])
    said = capsys.readouterr().err
    assert "\\x1b[2Jgone" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_a_name_is_one_line_in_a_log(name: str, shown: str) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(command_line.OneLine("%(levelname)s %(message)s"))
    record = logging.LogRecord("argosy", logging.WARNING, __file__, 1, "dropped %s", (name,), None)
    handler.emit(record)
    assert written.getvalue() == f"WARNING dropped {shown}\n"


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        record = logging.LogRecord("argosy", logging.ERROR, __file__, 1, "failed", (), (ValueError, error, None))
    assert command_line.OneLine("%(message)s").format(record) == "failed\nValueError: a\nb"
