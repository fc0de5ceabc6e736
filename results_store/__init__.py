"""The SQL store: jobs, envelopes, results and batches. It imports neither producers nor workers.

Use `results_store.store.Store`. Importing this package alone loads no database code.
"""

from __future__ import annotations

from results_store import moved

#: Old names of modules from earlier versions of README and docs; see CHANGELOG.
_MOVED = {
    "results_store.api_keys": "results_store.gateway.api_keys",
    "results_store.celery_backend": "results_store.celery_results.backend",
    "results_store.database": "results_store.sql.database",
    "results_store.reading": "results_store.sql.reading",
    "results_store.retention": "results_store.sql.retention",
    "results_store.schema": "results_store.sql.schema",
}
moved.accept(_MOVED)
