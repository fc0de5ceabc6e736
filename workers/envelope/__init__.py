"""The life of an envelope: claim, fetch and prepare inputs, compute, store results."""
