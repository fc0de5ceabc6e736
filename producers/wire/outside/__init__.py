"""Requests to hosts outside the fleet that callers name."""
