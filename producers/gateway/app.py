"""The application: a client, the guard in front, the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from producers.client.async_client import AsyncClient
from producers.gateway import openai, problems
from producers.gateway.duties.webhook_duty import WebhookDuty
from producers.gateway.gateway import Gateway, check_query
from producers.gateway.guard import REQUEST_ID, Guard
from producers.gateway.openai import embeddings
from producers.gateway.openai.batch_duty import BatchDuty
from producers.gateway.routes import (
    administration,
    browsing,
    history,
    items,
    jobs,
    operations,
    page,
    pausing,
    result_downloads,
    scheduling,
    sites,
    streams,
)
from producers.gateway.settings import GatewaySettings

ABOUT = """An Argosy fleet over HTTP. Send `Authorization: Bearer KEY`. Errors are `application/problem+json`;
under `/v1`, which follows OpenAI's API, errors have OpenAI's shape."""

#: The routers in the order of OpenAPI's listing.
ROUTERS = (
    items.router,
    jobs.router,
    browsing.router,
    result_downloads.router,
    streams.router,
    operations.router,
    pausing.router,
    scheduling.router,
    sites.router,
    administration.router,
    history.router,
)


def create_app(settings: GatewaySettings, connect: Callable[[], AsyncClient] = AsyncClient) -> FastAPI:
    """Return the ASGI application. Its client opens and closes with the server's event loop."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with connect() as client:
            gateway = Gateway(settings, client, detokenizer)
            app.state.gateway = gateway
            async with BatchDuty(gateway) as batches, WebhookDuty(gateway) as webhooks:
                app.state.batches, app.state.webhooks = batches, webhooks
                yield
            await gateway.close()

    tokenizer = settings.embedding_tokenizer
    detokenizer = None if tokenizer is None else embeddings.detokenizer_of(tokenizer)

    app = FastAPI(
        title="Argosy",
        version=version("argosy"),
        description=ABOUT,
        lifespan=life,
        docs_url=None,  # these pages would load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"logs": False, "metrics": False, "operation_spans": False},  # a span for each request
    )
    # for OpenAPI alone: the guard checks the key
    keys = [Depends(HTTPBearer(auto_error=False, description="An API key of `argosy gateway keys add`."))]
    keys_and_query = [*keys, Depends(check_query)]
    routers = (operations.public, *ROUTERS, page.router, *openai.ROUTERS)
    app.include_router(operations.public, responses=problems.RESPONSES)
    for router in ROUTERS:
        app.include_router(router, responses=problems.RESPONSES, dependencies=keys_and_query)
    app.include_router(page.router, dependencies=keys)
    for router in openai.ROUTERS:
        app.include_router(router, responses=problems.OPENAI_RESPONSES, dependencies=keys_and_query)
    problems.install(app, [route for router in routers for route in router.routes if isinstance(route, Route)])
    app.add_middleware(_Guarded)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],  # OpenAI's package in a browser sends a dozen of its own
            expose_headers=["Location", "Retry-After", REQUEST_ID],
        )
    return app


class _Guarded:
    """Puts the guard before the application, with the gateway that the event loop has made."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        await Guard(self._app, scope["app"].state.gateway)(scope, receive, send)
