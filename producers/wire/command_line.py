"""A click group that prints errors as one line with a remedy, and that takes more commands from other packages."""

from __future__ import annotations

import io
import logging
import math
import os
import select
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from producers.wire.errors import ArgosyError, without_text
from producers.wire.tracing import exporting
from results_store.loops.log_lines import JsonLines

if TYPE_CHECKING:
    from rich.console import Console

    from results_store.sql.auditing.audit_log import Actor

GROUP = "argosy.commands"

#: Wide enough for every column when the output is not a terminal, so that no identifier is cut.
PLAIN_WIDTH = 200

#: Exit codes: an error of the fleet or the data, a wrong command line, and Ctrl-C.
FAILED, MISUSED, STOPPED = 1, 2, 130

_NOT_INSTALLED = (
    "the commands for workers (up, worker, migrate, doctor, models) are not installed; pip install 'argosy[local]'"
)


def user() -> Actor:
    """Return this machine's user, for the audit log."""
    import getpass
    import socket

    from results_store.sql.auditing.audit_log import Actor

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        name = f"uid {os.getuid()}"
    return Actor(name=name, source="command", address=socket.gethostname())


def log_to_stderr(config: Path | None = None) -> None:
    """Log a service's events to stderr, each line with its time; or as JSON, if `config` or the environment says so.

    `config` is the service's fleet.toml, by default the environment's. Raises ConfigurationError.
    """
    from producers.wire.connection import Connection, log_settings

    chosen = (log_settings(config) if config else Connection().log).format
    os.environ["ARGOSY_LOG_FORMAT"] = chosen  # for the processes that it starts
    log_as(chosen)


def log_as(format_: str) -> None:
    """Log to stderr in a form of `LogSettings`."""
    line = OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    logging.captureWarnings(capture=True)  # a log has lines with a time
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines() if format_ == "json" else line)
    # httpx logs whole URLs, which are inputs; alembic logs each migration of a new database
    for chatty in ("httpx", "httpx2", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def visible(text: str) -> str:
    """Return a text with its control characters, also those of the writing direction, escaped: for terminals and logs.

    Names of jobs, keys and files are data of strangers: they must neither move the cursor nor forge a line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character for character in text
    )


def _is_control(character: str) -> bool:
    turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    marks = character in "\u061c\u200e\u200f"
    return turns or marks or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


class OneLine(logging.Formatter):
    """A formatter whose messages are a line each; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = visible(record.message)
        return super().formatMessage(record)


class LeaveTextOut(logging.Filter):
    """A filter for loggers of libraries that names an error by class and place: its text may hold an input."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            # Celery's message contains the error's text; its arguments have the task's id
            task = record.args.get("id") if isinstance(record.args, dict) else None
            about = record.getMessage().strip() if task is None else f"task {task!r} failed"
            record.msg, record.args, record.exc_info = "%s: %s", (about, without_text(error)), None
        return True


def say(text: str, *, err: bool = False) -> None:
    """Print a line for people. Use click.echo for JSON, which programs read."""
    click.echo(visible(text), err=err)


def console() -> Console:
    """Return a console that shows every text as it is, and cuts none when the output is not a terminal."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **_: Any) -> Text:
            return Text(visible(text))

        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - the error is being handled; `CommandLine` decides

    shown = Plain(markup=False, highlight=False, emoji=False)
    if not shown.is_terminal:
        shown.width = PLAIN_WIDTH
    return shown


#: A number of rows, within what both databases hold.
ROWS = click.IntRange(1, 10**9)


class Finite(click.FloatRange):
    """A finite number in a range: refuses "nan" and "inf", which Python's float accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class CommandLine(click.Group):
    """A group of its own commands and those of installed packages. Each entry point is a list of click commands.

    The group loads entry points only for a command that is not its own, or for ``--help``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(_added_commands()[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        added, missing = _added_commands()
        if cmd_name not in added and missing:
            ctx.fail(f"no command {cmd_name!r} here: {missing}")
        return added.get(cmd_name)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line, and exit with 0, 1 (failure), 2 (wrong usage) or 130 (Ctrl-C).

        A reader of the output that stops early, like ``head``, is no failure.
        """
        _prepare_streams()
        exporting.begin(f"argosy-{next(iter(sys.argv[1:] if args is None else args), '')}")
        try:
            code = super().main(args, prog_name or "argosy", complete_var, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as error:  # click ends the program with 1 then
            if getattr(error, "code", FAILED) != FAILED or not _reader_has_gone():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)  # the help, in lines
            sys.exit(MISUSED)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "argosy"
            _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", MISUSED)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(STOPPED)
        except ArgosyError as error:
            _fail(_with_notes(str(error), error), FAILED)
        except (OSError, UnicodeEncodeError) as error:
            _fail(_with_notes(_about(error), error), FAILED)
        sys.exit(code if isinstance(code, int) else 0)


def _prepare_streams() -> None:
    """Write UTF-8 in any locale: a name or a row that the locale's encoding does not have would end the command.

    A stream that the caller has closed is an empty one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a program with one line for an error of Argosy or of a file, as `CommandLine` does."""
    try:
        yield
    except ArgosyError as error:
        _fail(str(error), FAILED)
    except (OSError, UnicodeEncodeError) as error:
        _fail(_about(error), FAILED)


def _reader_has_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _added_commands() -> tuple[dict[str, click.Command], str]:
    """Return the commands of all entry points by name, and a message if some could not be loaded."""
    added: dict[str, click.Command] = {}
    missing = ""
    for entry_point in entry_points(group=GROUP):
        try:
            commands: Sequence[click.Command] = entry_point.load()
        except (ImportError, AttributeError) as error:
            missing = f"{_NOT_INSTALLED} ({error})"
            continue
        added.update({command.name: command for command in commands if command.name})
    return added, missing


def _with_notes(message: str, error: Exception) -> str:
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _about(error: OSError | UnicodeEncodeError) -> str:
    """Return the message for an error of a file, or for bytes of an argument or a variable that are no text."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r:.80} is not valid Unicode; write it in UTF-8"
    if error.filename is None:
        return f"{error}; try again"
    return f"{error.filename}: {error.strerror}; check the path and its permissions"


def _fail(message: str, code: int) -> None:
    say(f"argosy: {' '.join(message.split())}", err=True)
    sys.exit(code)
