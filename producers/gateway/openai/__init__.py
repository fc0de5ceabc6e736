"""The shapes of OpenAI's API, for the clients that speak it already."""

from __future__ import annotations

from producers.gateway.openai import chat, embeddings, openai_batches, served_models, transcriptions, uploads

ROUTERS = (
    served_models.router,
    embeddings.router,
    chat.router,
    transcriptions.router,
    uploads.router,
    openai_batches.router,
)
