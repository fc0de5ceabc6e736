"""Traces by OpenTelemetry: an item's way from its producer through message, batch and device to the commit."""
