"""A node: the envelopes that a worker holds, their leases, its presence and its periodic duties."""
