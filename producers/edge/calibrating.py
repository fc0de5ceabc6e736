"""`argosy edge calibrate`: rows are answered by the site and by the centre, which gives the threshold of a task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from producers.client.async_client import AsyncClient
from producers.client.request import NewItem
from producers.edge import cascade
from producers.edge.departure import Departing, Roots, departing
from producers.edge.escalation import BATCH_BYTES, BATCH_ITEMS
from producers.edge.groups import group_id
from producers.edge.link import Link, OutgoingBatch
from producers.edge.thresholds import Judged
from producers.sources.source import Source
from producers.wire.catalogue import Catalogue
from producers.wire.connection import Connection
from producers.wire.edge.edge_settings import EdgeSettings, EdgeTask
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.fleet_file import known
from producers.wire.messages import Item
from results_store.records import ResultState


@dataclass(frozen=True, slots=True)
class Row:
    """An input, with its label if it has one."""

    item: NewItem
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The rows that site and centre have both answered, and the number of the other rows."""

    rows: list[Judged]
    left_out: int
    labelled: bool


def read_rows(
    files: Sequence[Path], task: str, own: Catalogue, *, label_column: str | None, input_column: str | None, limit: int
) -> list[Row]:
    """Return up to `limit` rows of files. Raises InvalidInput for a row without a label, if there is a label column."""
    source = Source([*files], own.tasks[task].kind.modality, own.limits, input_column=input_column)
    found: list[Row] = []
    for record in source.records():
        item = source.item(record)
        if isinstance(item, InvalidInput):
            raise item
        label = None
        if label_column is not None:
            label = record.columns.get(label_column)
            if label is None or label == "":
                remedy = f"the columns are {', '.join(map(str, record.columns))}"
                raise InvalidInput(record.origin, f"has no label in the column {label_column!r}", remedy)
        found.append(Row(item, None if label is None else str(label)))
        if len(found) == limit:
            break
    return found


def checked_task(settings: EdgeSettings, name: str) -> EdgeTask:
    """Return a task that can have a threshold. Raises ConfigurationError."""
    if name not in settings.tasks:
        raise ConfigurationError(f"--task: no task {name!r} in [edge]; {known(name, settings.tasks)}")
    task = settings.tasks[name]
    if task.stay_on_site or task.only_at_centre:
        reason = "its items never leave" if task.stay_on_site else "the site has no model for it"
        raise ConfigurationError(f"--task: {name!r} has no threshold: {reason}")
    return task


async def answered(
    rows: Sequence[Row], name: str, settings: EdgeSettings, own: Catalogue, where: Connection
) -> Answered:
    """Ask the site and the centre. Right is a row's label; without labels, the centre's answer.

    Raises InvalidInput for a wrong row, LinkDown, KeyRefused or BatchRefused.
    """
    task = checked_task(settings, name)
    here, there = await asyncio.gather(
        _by_site(rows, task.site or name, own, where), _by_centre(rows, name, task, settings, own)
    )
    found = []
    for place, row in enumerate(rows):
        outputs = here.get(place), there.get(place)
        site, centre = map(cascade.label, outputs)
        score = cascade.confidence(outputs[0])
        if site is not None and centre is not None and score is not None:
            right = centre if row.label is None else row.label
            found.append(Judged(score, site == right, centre == right))
    return Answered(rows=found, left_out=len(rows) - len(found), labelled=any(row.label is not None for row in rows))


async def _by_site(rows: Sequence[Row], task: str, own: Catalogue, where: Connection) -> dict[int, Any]:
    async with AsyncClient(where.broker_url, where.store_url, catalogue=own) as client:
        job = await client.submit_many(task, [row.item for row in rows], name=f"calibrates {task}", ttl_s=3600.0)
        await job.wait()
        return {row.seq: row.output async for row in job.results() if row.state is ResultState.SUCCEEDED}


async def _by_centre(
    rows: Sequence[Row], name: str, task: EdgeTask, settings: EdgeSettings, own: Catalogue
) -> dict[int, Any]:
    found: dict[int, Any] = {}
    start = 0
    async with Link(settings, settings.key(os.environ)) as link:
        for leaving in _batches(rows, name, task, own):
            batch = OutgoingBatch(id=group_id(len(leaving)), task=task.centre or name, items=leaving, priority="bulk")
            job = await link.submit(batch)
            async for answers in link.results(job):
                found.update({start + row["seq"]: row["output"] for row in answers if _succeeded(row)})
            start += len(leaving)
    return found


def _batches(rows: Sequence[Row], name: str, task: EdgeTask, own: Catalogue) -> Iterator[list[Departing]]:
    """Yield the rows as they are sent, in batches of bounded items and bytes."""
    kind = own.tasks[task.site or name]
    leaving, size = list[Departing](), 0
    for place, row in enumerate(rows):
        given = own.check_input(kind, row.item.input, field=row.item.origin or f"rows[{place}]")
        one = departing(Item(place, given, (name,)), name, task, Roots())
        if leaving and (len(leaving) == BATCH_ITEMS or size + len(one.body) > BATCH_BYTES):
            yield leaving
            leaving, size = [], 0
        leaving.append(one)
        size += len(one.body)
    if leaving:
        yield leaving


def _succeeded(row: Mapping[str, Any]) -> bool:
    return bool(row.get("state") == ResultState.SUCCEEDED.value)


def as_toml(name: str, threshold: float) -> str:
    """Return the lines for the site's ``fleet.toml``, with all digits: it may be just over a score."""
    quoted = msgspec.json.encode(name).decode()
    return f"[edge.tasks.{quoted}]\nthreshold = {threshold!r}"
