"""The listener beside the gateway: health checks, metrics, and the number of workers for a scaler. It asks for no key.

`/metrics` and `/scale` answer nowhere else. They name models and tenants, so they belong on a port that only operators
reach; a key in a scraper's settings would be an operator's, which reads every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from producers.gateway.answers import Json
from producers.gateway.gateway import Gateway
from producers.gateway.guard import HEALTH
from producers.gateway.metrics.gateway_metrics import GatewayMetrics
from producers.gateway.metrics.wanted_workers import WITHIN_S
from producers.gateway.problems import Problem, answer, problem
from producers.wire.errors import ArgosyError, InvalidInput
from producers.wire.messages import Priority

#: The longest time within which work may be wanted to be done: a year.
MOST_WITHIN_S = 365 * 86400.0

MOST_FIELDS = 100


class HealthListener:
    """The ASGI application of the port beside; `app` is the gateway's, which runs in the same event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        path: str = scope["path"]
        try:
            if path not in ("/metrics", "/scale"):
                detail = "this port has /healthz, /readyz, /metrics and /scale alone"
                raise Problem(404, "NotFound", detail, remedy="ask the gateway's main port")
            if scope["method"] not in ("GET", "HEAD"):
                raise Problem(405, "MethodNotAllowed", "only GET is answered here", headers={"Allow": "GET, HEAD"})
            return await (self._metrics() if path == "/metrics" else self._scale(scope))
        except Problem as refused:
            return answer(refused, path)
        except ArgosyError as error:
            return answer(problem(error), path)

    async def _metrics(self) -> Response:
        return Response(await self._own.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _scale(self, scope: Scope) -> Response:
        asked = _query(scope["query_string"])
        models = [value for name, value in asked if name == "model"]
        wanted, live = await self._own.fleet.wanted(models, _within(dict(asked)))
        return Json(
            {
                "workers": wanted.workers,
                "live": live,
                "seconds": wanted.seconds,
                "reason": wanted.reason,
                "unmeasured": list(wanted.unmeasured),
            }
        )

    @property
    def _own(self) -> GatewayMetrics:
        gateway: Gateway = self._app.state.gateway  # made in the event loop
        return gateway.metrics


def _query(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise InvalidInput("model", f"there are over {MOST_FIELDS} parameters", "ask for fewer models") from error


def _within(asked: Mapping[str, Any]) -> dict[Priority, float]:
    """Return the seconds within which work should be done. Raises InvalidInput."""
    fields = {f"{priority.name.lower()}_s": priority for priority in WITHIN_S}
    if unknown := sorted(asked.keys() - fields.keys() - {"model"}):
        raise InvalidInput(unknown[0], "is no parameter", f"there are model, {', '.join(fields)}")
    chosen = dict(WITHIN_S)
    for name, priority in fields.items():
        if name in asked:
            chosen[priority] = _seconds(name, asked[name])
    return chosen


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_WITHIN_S:
        raise InvalidInput(name, f"must be seconds over 0 and at most {MOST_WITHIN_S:g}, not {value!r:.80}")
    return seconds
