"""A node: the envelopes that one worker holds, their leases, its presence and its periodic duties."""
