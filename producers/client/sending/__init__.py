"""How a submission leaves the client: checked, gathered into chunks, stored in the outbox and published."""
