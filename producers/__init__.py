"""The client of an Argosy fleet: submit texts and images, await their results. Needs neither torch nor Celery.

    from producers import Client

    with Client() as client:
        print(client.submit("sentiment", "a fine film").result(timeout_s=30))
        job = client.submit_many(["sentiment", "topic"], texts)
        job.wait()
        for row in job.results():
            print(row.seq, row.task, row.state, row.output)

In asyncio, `AsyncClient` does the same: ``await client.submit(…)``, ``await handle``, ``async for row in job.as_completed()``.

Names are imported when first used, so that ``import producers`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from producers.async_client import AsyncClient
    from producers.async_handles import AsyncHandle, AsyncJob
    from producers.catalogue import Catalogue
    from producers.client import Client
    from producers.errors import (
        ArgosyError,
        BrokerUnavailable,
        ConfigurationError,
        FileUnavailable,
        InputTooLarge,
        InvalidInput,
        ItemCancelled,
        ItemExpired,
        ItemFailed,
        Overloaded,
        RateLimited,
        ResultTimeout,
        UnknownTask,
    )
    from producers.handles import Handle, Job, value
    from producers.messages import InlineBytes, PathInput, Priority, UrlInput
    from producers.packing import Rejected
    from producers.pipelines.async_handles import AsyncPipelineJob
    from producers.pipelines.handles import PipelineJob
    from producers.pipelines.pipeline import Pipeline
    from producers.pipelines.tree import Branch, Tree
    from producers.request import NewItem
    from results_store.errors import StoreError, StoreUnavailable, UnknownJob
    from results_store.records import JobStatus, Result, ResultState

__all__ = [
    "ArgosyError",
    "AsyncClient",
    "AsyncHandle",
    "AsyncJob",
    "AsyncPipelineJob",
    "Branch",
    "BrokerUnavailable",
    "Catalogue",
    "Client",
    "ConfigurationError",
    "FileUnavailable",
    "Handle",
    "InlineBytes",
    "InputTooLarge",
    "InvalidInput",
    "ItemCancelled",
    "ItemExpired",
    "ItemFailed",
    "Job",
    "JobStatus",
    "NewItem",
    "Overloaded",
    "PathInput",
    "Pipeline",
    "PipelineJob",
    "Priority",
    "RateLimited",
    "Rejected",
    "Result",
    "ResultState",
    "ResultTimeout",
    "StoreError",
    "StoreUnavailable",
    "Tree",
    "UnknownJob",
    "UnknownTask",
    "UrlInput",
    "value",
]

_HOMES = {
    "producers.async_client": ("AsyncClient",),
    "producers.async_handles": ("AsyncHandle", "AsyncJob"),
    "producers.catalogue": ("Catalogue",),
    "producers.client": ("Client",),
    "producers.errors": (
        "ArgosyError",
        "BrokerUnavailable",
        "ConfigurationError",
        "FileUnavailable",
        "InputTooLarge",
        "InvalidInput",
        "ItemCancelled",
        "ItemExpired",
        "ItemFailed",
        "Overloaded",
        "RateLimited",
        "ResultTimeout",
        "UnknownTask",
    ),
    "producers.handles": ("Handle", "Job", "value"),
    "producers.messages": ("InlineBytes", "PathInput", "Priority", "UrlInput"),
    "producers.packing": ("Rejected",),
    "producers.pipelines.async_handles": ("AsyncPipelineJob",),
    "producers.pipelines.handles": ("PipelineJob",),
    "producers.pipelines.pipeline": ("Pipeline",),
    "producers.pipelines.tree": ("Branch", "Tree"),
    "producers.request": ("NewItem",),
    "results_store.errors": ("StoreError", "StoreUnavailable", "UnknownJob"),
    "results_store.records": ("JobStatus", "Result", "ResultState"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
