"""Download progress for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workers.models.sources.download import Progress


@contextmanager
def shown() -> Iterator[Progress]:
    """Show a progress bar for each file on standard error; call the yielded `Progress` to move it."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, rich.TaskID] = {}

        def move(name: str, done_bytes: int, total_bytes: int | None) -> None:
            if name not in known:
                known[name] = bars.add_task(name, total=total_bytes)
            bars.update(known[name], completed=done_bytes, total=total_bytes)

        yield move
