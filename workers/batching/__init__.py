"""Micro-batches: items wait, are chosen and computed; a failed batch is split to find the culprit."""
