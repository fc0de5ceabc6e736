"""The gateway's data in the store: API keys, uploaded files and OpenAI batches."""
