"""The handles to a submitted pipeline: one job, whose results are trees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, TextIO

import msgspec

from producers.client.async_handles import AsyncWatched, Taken
from producers.client.handles import Watched
from producers.client.pipelines.tree import Grown, Tree, trees
from producers.client.runtimes import iterate
from producers.wire.errors import InvalidInput
from producers.wire.pipelines.plan import Plan
from results_store.records import JobStatus

if TYPE_CHECKING:
    from producers.client.fleet_link import FleetLink
    from results_store.store import Store


class AsyncPipelineJob(AsyncWatched):
    """The submission of a pipeline. Its progress counts results; `total` grows as steps become due."""

    def __init__(self, link: FleetLink, id: str, plan: Plan, *, taken: Taken | None = None) -> None:  # noqa: A002
        super().__init__(link, id, taken=taken)
        self.plan = plan

    async def results(self) -> AsyncIterator[Tree]:
        """Yield a tree for each input that has results by now, in their order. See `PipelineJob.results`."""
        grown = Grown(self.plan, cancelled=(await self.progress()).cancelled_at is not None)
        async for rows in self.pages():
            for row in rows:
                if tree := grown.add(row):
                    yield tree
        if tree := grown.last():
            yield tree


class PipelineJob(Watched[AsyncPipelineJob]):
    """The submission of a pipeline. Its progress counts results; `total` grows as steps become due."""

    def __init__(self, job: AsyncPipelineJob) -> None:
        super().__init__(job)
        self.plan = job.plan

    def results(self) -> Iterator[Tree]:
        """Yield a tree for each input that has results by now, in their order. Raises UnknownJob.

        Wait for the job first to get whole trees; until then, missing branches are ``waiting``.
        """
        return iterate(self._job.results())


def write_trees(store: Store, job: str, out: TextIO) -> None:
    """Write the tree of each input as a JSON object. Raises UnknownJob, or InvalidInput if it is no pipeline."""
    from results_store.export.text_export import stream, write_lines
    from results_store.sql.columns import compact_json

    status = store.job(job)
    made = trees(plan_of_job(status), stream(store, job), cancelled=status.cancelled_at is not None)
    write_lines(out, (compact_json(tree.plain()) for tree in made))


def plan_of_job(job: JobStatus) -> Plan:
    """Return the plan of a job. Raises InvalidInput if the job is not a pipeline."""
    if job.pipeline is None:
        raise InvalidInput(
            "id", f"the job {job.id} is not a pipeline", "its results are rows: `Client.job`, `argosy results`"
        )
    return msgspec.convert(job.pipeline, Plan)
