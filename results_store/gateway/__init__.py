"""What the gateway keeps in the store: API keys, uploaded files and OpenAI batches."""
