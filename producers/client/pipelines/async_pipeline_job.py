"""What the asyncio client's submission of a pipeline gives back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from producers.client.async_handles import AsyncWatched
from producers.client.handles import Taken
from producers.client.pipelines.tree import Grown, Tree
from producers.wire.pipelines.plan import Plan

if TYPE_CHECKING:
    from producers.client.fleet_link import Link
    from producers.client.thread_calls import Calls


class AsyncPipelineJob(AsyncWatched):
    """The submission of a pipeline. The counts of its progress are of results; `total` grows as steps become due."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        id: str,  # noqa: A002
        plan: Plan,
        *,
        taken: Taken | None = None,
    ) -> None:
        super().__init__(link, calls, id, taken=taken)
        self.plan = plan

    async def results(self) -> AsyncIterator[Tree]:
        """Yield a tree for each input that has results by now, in their order. See `PipelineJob.results`."""
        grown = Grown(self.plan, cancelled=(await self.progress()).cancelled_at is not None)
        async for rows in self._rows():
            for row in rows:
                if tree := grown.add(row):
                    yield tree
        if tree := grown.last():
            yield tree
