"""Which items form the next batch, and how long it will take. Pure: no I/O."""
