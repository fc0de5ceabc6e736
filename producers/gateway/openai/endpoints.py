"""The endpoints that batches may use, by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from producers.gateway.openai import chat, embeddings
from producers.gateway.openai.endpoint_calls import Plan, Shape


class Endpoint(NamedTuple):
    """The functions of an endpoint: `plan` reads a request's body, `shape` makes the answer."""

    plan: Plan
    shape: Shape


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/embeddings": Endpoint(embeddings.plan, embeddings.shape),
    "/v1/chat/completions": Endpoint(chat.plan, chat.shape),
}
