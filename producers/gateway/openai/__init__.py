"""The shapes of OpenAI's API, for the clients that speak it already."""

from __future__ import annotations

from producers.gateway.openai import audio, batches, chat, embeddings, files, models

ROUTERS = (models.router, embeddings.router, chat.router, audio.router, files.router, batches.router)
