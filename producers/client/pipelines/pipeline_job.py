"""What the submission of a pipeline gives back: one job, and its results as trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import msgspec

from producers.client.handles import Taken, Watched
from producers.client.pipelines.tree import Tree, trees
from producers.wire.errors import InvalidInput
from producers.wire.pipelines.plan import Plan
from results_store.records import JobStatus

if TYPE_CHECKING:
    from producers.client.fleet_link import Link
    from results_store.store import Store


class PipelineJob(Watched):
    """The submission of a pipeline. The counts of its progress are of results; `total` grows as steps become due."""

    def __init__(self, link: Link, id: str, plan: Plan, *, taken: Taken | None = None) -> None:  # noqa: A002
        super().__init__(link, id, taken=taken)
        self.plan = plan

    def results(self) -> Iterator[Tree]:
        """Yield a tree for each input that has results by now, in their order. Raises UnknownJob.

        Wait first to have them whole; before that, branches are ``waiting``.
        """
        from results_store.export.text_export import stream

        cancelled = self.progress().cancelled_at is not None
        yield from trees(self.plan, stream(self._link.store, self.id), cancelled=cancelled)


def write_trees(store: Store, job: str, out: TextIO) -> None:
    """Write one JSON object an input, with its tree. Raises UnknownJob, or InvalidInput for a job that is no pipeline."""
    from results_store.export.text_export import stream, write_lines
    from results_store.sql.columns import compact_json

    status = store.job(job)
    made = trees(plan_of_job(status), stream(store, job), cancelled=status.cancelled_at is not None)
    write_lines(out, (compact_json(tree.plain()) for tree in made))


def plan_of_job(job: JobStatus) -> Plan:
    """Return the plan that is kept with a job. Raises InvalidInput for a job without."""
    if job.pipeline is None:
        raise InvalidInput(
            "id", f"the job {job.id} is no pipeline", "its results are rows: `Client.job`, `argosy results`"
        )
    return msgspec.convert(job.pipeline, Plan)
