"""Places outside the fleet that callers name: hosts of requests, and sources of scheduled submissions."""
