"""The messages of `argosy submit`: progress, bad rows, and items submitted before."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from producers.commands.operate import open_store
from producers.commands.serving import LOOKED_AT, changed, unserved
from producers.wire.command_line import say
from producers.wire.errors import InvalidInput
from results_store.errors import StoreUnavailable

if TYPE_CHECKING:
    from producers.client.handles import Job
    from producers.client.sending.intake import Rejected
    from producers.sources import Source
    from results_store.records import JobStatus

#: Seconds between looks at the workers while a watched job makes no progress.
LOOK_EVERY_S = 10.0


class Count:
    """Counts the accepted items, for the message when the user stops the submission."""

    def __init__(self, source: Source, show: Callable[[int, float | None], object]) -> None:
        self.job = ""
        self.items = 0
        self._source = source
        self._show = show

    @property
    def told(self) -> str:
        """The accepted items of this run, and the way to go on."""
        if not self.items:
            return "this run has submitted no items, or those that were just under way; run the command again"
        return (
            f"this run has added at least {self.items:,} items to job {self.job}; run the command again to resume, or "
            f"cancel the items with `argosy cancel {self.job}`"
        )

    def __call__(self, job: str, items: int) -> None:
        self.job, self.items = job, items
        self._show(items, self._source.share_read)


@contextmanager
def counting(source: Source) -> Iterator[Count]:
    with ExitStack() as stack:
        show: Callable[[int, float | None], object] = _show_nothing
        if sys.stderr.isatty():
            from producers.commands.tables import submission_bar

            show = stack.enter_context(submission_bar())
        count = Count(source, show)
        try:
            yield count
        except KeyboardInterrupt:
            say(f"\nargosy: stopped; {count.told}", err=True)
            raise


def _show_nothing(items: int, share: float | None) -> None:
    pass


class Rejections:
    """Counts the bad rows, and writes each to the errors file."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._first: Rejected | None = None
        self._count = 0

    def __call__(self, rejected: Rejected) -> None:
        self._first = self._first or rejected
        self._count += 1
        if self._file is not None:
            self._file.write(_described(rejected))

    def unless_all(self, rows: Iterable[object]) -> Iterator[object]:
        """Yield the rows. Raises InvalidInput after the last, before any job exists, if all of them were bad."""
        seen = 0
        for row in rows:
            seen += 1
            yield row
        if self._first is not None and self._count == seen:
            raise InvalidInput("input", f"no row could be submitted: {self._first.error}")


@contextmanager
def rejecting(path: Path | None) -> Iterator[Rejections]:
    """Yield the `Rejections` of a submission. Its errors file starts empty."""
    with nullcontext() if path is None else path.open("wb") as file:
        yield Rejections(file)


def _described(rejected: Rejected) -> bytes:
    error = rejected.error
    row = {
        "row": rejected.seq + 1,
        "where": error.field,
        "id": rejected.key,
        "kind": type(error).__name__,
        "problem": error.problem,
        "remedy": error.remedy,
    }
    return msgspec.json.encode(row) + b"\n"


def tell(job: Job, submitted: int, errors: Path | None) -> None:
    """Report the rows that were left out and the items that were submitted before."""
    if job.rejected_count:
        all_of_them = f"; all of them: {errors}" if errors is not None else ""
        count = "1 row" if job.rejected_count == 1 else f"{job.rejected_count:,} rows"
        say(f"argosy: {count} left out; the first: {job.rejected[0].error}{all_of_them}", err=True)
    if job.found and not submitted:
        with open_store() as store:
            differs = changed(store.results(job.id, limit=LOOKED_AT))
        say(
            f"argosy: all of it was submitted before{'' if differs is None else f'; {differs}'}; "
            "`--again` submits it anew",
            err=True,
        )
    elif job.found:
        say(f"argosy: resumed after the {job.found:,} items that were submitted before", err=True)


def tell_left_out(source: Source) -> None:
    """Report the files of a folder that were passed over, and lines that were taken for headers."""
    for name, header in source.headers.items():
        say(
            f"argosy: {name}: the first line, {header[:60]!r}, names the column; if it is an item, add a header",
            err=True,
        )
    if source.left_out:
        from producers.sources.source import told_left_out

        say(f"argosy: left out, as the task does not read them: {told_left_out(source.left_out)}", err=True)


def watch(job: Job) -> int:
    """Show the progress until the job is finished; return the exit code."""
    try:
        from producers.commands.tables import progress_bar, summary

        with progress_bar() as show:
            finished = job.wait(on_progress=_Watch(show))
    except KeyboardInterrupt:
        say(f"argosy: the job goes on; see `argosy status {job.id}`", err=True)
        raise
    say(summary(finished), err=True)
    if finished.failed:
        _tell_why(job.id)
    return 0 if finished.succeeded == finished.total else 1


class _Watch:
    """Show the progress of a job. While there is none, say so if no running worker serves the models that it needs."""

    def __init__(self, show: Callable[[JobStatus], object]) -> None:
        self._show = show
        self._done, self._looked_at = 0, time.monotonic()
        self._said: str | None = None

    def __call__(self, status: JobStatus) -> None:
        self._show(status)
        now = time.monotonic()
        if status.done != self._done:
            self._done, self._looked_at = status.done, now
        elif now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look(status.id)

    def _look(self, job: str) -> None:
        with suppress(StoreUnavailable), open_store() as store:
            told = unserved(store.unfinished_models(job))
            if told is not None and told != self._said:
                say(f"argosy: {told}", err=True)
            self._said = told


def _tell_why(job: str) -> None:
    """Print a single failure as an example of all."""
    with open_store() as store:
        for row in store.recent_failures(job=job, limit=1):
            why = row.error["message"] if row.error else "no error was recorded"
            item = f"item {row.key}" if row.key else f"item {row.seq}"
            say(f"argosy: {row.task} of {item} failed: {why}; `argosy results {job}` has all results", err=True)
