"""The messages of `argosy submit`: progress, bad rows, and items submitted before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from producers.commands.operate import open_store
from producers.wire.command_line import say
from producers.wire.errors import InvalidInput

if TYPE_CHECKING:
    from producers.client.handles import Job
    from producers.client.sending.intake import Rejected
    from producers.sources import Source


class Count:
    """Counts the accepted items, for the message when the user stops the submission."""

    def __init__(self, source: Source, show: Callable[[int, float | None], object]) -> None:
        self.job = ""
        self.items = 0
        self._source = source
        self._show = show

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
            if count.items:
                say(
                    f"\nargosy: stopped; job {count.job} keeps at least {count.items:,} items; "
                    f"run the command again to resume, or cancel the items with `argosy cancel {count.job}`",
                    err=True,
                )
            raise


def _show_nothing(items: int, share: float | None) -> None:
    pass


@contextmanager
def rejecting(path: Path | None) -> Iterator[Callable[[Rejected], object] | None]:
    """Yield a function that writes a bad row to the errors file, which starts empty."""
    if path is None:
        yield None
        return
    with path.open("wb") as file:
        yield lambda rejected: file.write(_described(rejected))


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
        if job.progress().items == 0:
            raise InvalidInput("input", f"no row could be submitted: {job.rejected[0].error}")
        all_of_them = f"; all of them: {errors}" if errors is not None else ""
        count = "1 row" if job.rejected_count == 1 else f"{job.rejected_count:,} rows"
        say(f"argosy: {count} left out; the first: {job.rejected[0].error}{all_of_them}", err=True)
    if job.found and not submitted:
        say("argosy: all of it was submitted before; `--again` submits it anew", err=True)
    elif job.found:
        say(f"argosy: resumed after the {job.found:,} items that were submitted before", err=True)


def tell_left_out(source: Source) -> None:
    """Report the files of a folder that were passed over."""
    if source.left_out:
        suffixes = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(source.left_out.items()))
        say(f"argosy: files left out, which the task does not read: {suffixes}", err=True)


def watch(job: Job) -> int:
    """Show the progress until the job is finished; return the exit code."""
    try:
        from producers.commands.tables import progress_bar, summary

        with progress_bar() as show:
            finished = job.wait(on_progress=show)
    except KeyboardInterrupt:
        say(f"argosy: the job goes on; see `argosy status {job.id}`", err=True)
        raise
    say(summary(finished), err=True)
    if finished.failed:
        _tell_why(job.id)
    return 0 if finished.succeeded == finished.total else 1


def _tell_why(job: str) -> None:
    """Print a single failure as an example of all."""
    with open_store() as store:
        for row in store.recent_failures(job=job, limit=1):
            why = row.error["message"] if row.error else "no error was recorded"
            item = f"item {row.key}" if row.key else f"item {row.seq}"
            say(f"argosy: {row.task} of {item} failed: {why}; `argosy results {job}` has all results", err=True)
