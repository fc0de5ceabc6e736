"""The client of an Argosy fleet: submit texts and images, and wait for their results. Needs neither torch nor Celery.

    from producers import Client

    with Client() as client:
        print(client.submit("sentiment", "a fine film").result(timeout_s=30))
        job = client.submit_many(["sentiment", "topic"], texts)
        job.wait()
        for row in job.results():
            print(row.seq, row.task, row.state, row.output)

For asyncio, `AsyncClient` has the same methods: ``await client.submit(…)``, ``await handle``,
``async for row in job.as_completed()``.

Names are imported when first used, so that ``import producers`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from results_store import moved

if TYPE_CHECKING:
    from producers.client.async_client import AsyncClient
    from producers.client.async_handles import AsyncHandle, AsyncJob
    from producers.client.client import Client
    from producers.client.handles import Handle, Job, value
    from producers.client.pipelines.pipeline import Pipeline
    from producers.client.pipelines.pipeline_job import AsyncPipelineJob, PipelineJob
    from producers.client.pipelines.tree import Branch, Tree
    from producers.client.request import NewItem
    from producers.client.sending.intake import Rejected
    from producers.wire.catalogue import Catalogue
    from producers.wire.errors import (
        ArgosyError,
        BlobsUnavailable,
        BrokerUnavailable,
        ConfigurationError,
        FileUnavailable,
        InputTooLarge,
        InvalidInput,
        ItemCancelled,
        ItemExpired,
        ItemFailed,
        KeyConflict,
        KeyOfCancelledJob,
        Overloaded,
        RateLimited,
        ResultTimeout,
        StreamRestarted,
        UnknownTask,
    )
    from producers.wire.messages import InlineBytes, PathInput, Priority, UrlInput
    from results_store.errors import (
        SchemaMismatch,
        StoreError,
        StoreUnavailable,
        SubmissionConflict,
        TooManyChanges,
        UnknownJob,
    )
    from results_store.records import JobStatus, Result, ResultState

__all__ = [
    "ArgosyError",
    "AsyncClient",
    "AsyncHandle",
    "AsyncJob",
    "AsyncPipelineJob",
    "BlobsUnavailable",
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
    "KeyConflict",
    "KeyOfCancelledJob",
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
    "SchemaMismatch",
    "StoreError",
    "StoreUnavailable",
    "StreamRestarted",
    "SubmissionConflict",
    "TooManyChanges",
    "Tree",
    "UnknownJob",
    "UnknownTask",
    "UrlInput",
    "value",
]

_HOMES = {
    "producers.client.async_client": ("AsyncClient",),
    "producers.client.async_handles": ("AsyncHandle", "AsyncJob"),
    "producers.wire.catalogue": ("Catalogue",),
    "producers.client.client": ("Client",),
    "producers.wire.errors": (
        "ArgosyError",
        "BlobsUnavailable",
        "BrokerUnavailable",
        "ConfigurationError",
        "FileUnavailable",
        "InputTooLarge",
        "InvalidInput",
        "ItemCancelled",
        "ItemExpired",
        "ItemFailed",
        "KeyConflict",
        "KeyOfCancelledJob",
        "Overloaded",
        "RateLimited",
        "ResultTimeout",
        "StreamRestarted",
        "UnknownTask",
    ),
    "producers.client.handles": ("Handle", "Job", "value"),
    "producers.wire.messages": ("InlineBytes", "PathInput", "Priority", "UrlInput"),
    "producers.client.sending.intake": ("Rejected",),
    "producers.client.pipelines.pipeline_job": ("AsyncPipelineJob", "PipelineJob"),
    "producers.client.pipelines.pipeline": ("Pipeline",),
    "producers.client.pipelines.tree": ("Branch", "Tree"),
    "producers.client.request": ("NewItem",),
    "results_store.errors": (
        "SchemaMismatch",
        "StoreError",
        "StoreUnavailable",
        "SubmissionConflict",
        "TooManyChanges",
        "UnknownJob",
    ),
    "results_store.records": ("JobStatus", "Result", "ResultState"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__


#: Old names of modules from earlier versions of README and docs; see CHANGELOG.
_MOVED = {
    "producers.async_client": "producers.client.async_client",
    "producers.async_handles": "producers.client.async_handles",
    "producers.batches": "producers.commands.batch_figures",
    "producers.blobs": "producers.wire.blobs",
    "producers.catalogue": "producers.wire.catalogue",
    "producers.cli": "producers.commands.main",
    "producers.connection": "producers.wire.connection",
    "producers.errors": "producers.wire.errors",
    "producers.fleet_file": "producers.wire.fleet_file",
    "producers.handles": "producers.client.handles",
    "producers.messages": "producers.wire.messages",
    "producers.publisher": "producers.wire.publisher",
    "producers.queues": "producers.wire.queues",
    "producers.redaction": "producers.client.redaction",
    "producers.request": "producers.client.request",
}
moved.accept(_MOVED)
