"""Endpoints compatible with OpenAI's API."""

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
