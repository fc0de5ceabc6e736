"""The steps of a submission in the client: check, gather into chunks, store in the outbox, publish."""
