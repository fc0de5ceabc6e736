"""What batches can ask for: the endpoints by path, each with what turns a body into a call."""

from __future__ import annotations

from collections.abc import Mapping

from producers.gateway.openai import chat, embeddings
from producers.gateway.openai.endpoint_calls import Plan

ENDPOINTS: Mapping[str, Plan] = {"/v1/embeddings": embeddings.plan, "/v1/chat/completions": chat.plan}
