"""The shapes of OpenAI's API, for the clients that speak it already."""

from __future__ import annotations

from producers.gateway.openai import batches, embeddings, files, models

ROUTERS = (models.router, embeddings.router, files.router, batches.router)
