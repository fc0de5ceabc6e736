"""A whole fleet on one machine: broker, store, workers and Flower, started and stopped together."""

from __future__ import annotations

from workers.fleet.local import LocalFleet

__all__ = ["LocalFleet"]
