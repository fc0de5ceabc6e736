"""The SQL store: jobs, envelopes, results and batches. Knows neither the producers nor the workers.

`results_store.store.Store` is the way in; importing this package alone loads no database code.
"""

from __future__ import annotations

from results_store import moved

#: Old names that README and docs told to import or to run; see CHANGELOG.
_MOVED = {
    "results_store.api_keys": "results_store.gateway.api_keys",
    "results_store.celery_backend": "results_store.celery_results.backend",
    "results_store.database": "results_store.sql.database",
    "results_store.reading": "results_store.sql.reading",
    "results_store.retention": "results_store.sql.retention",
    "results_store.schema": "results_store.sql.schema",
}
moved.accept(_MOVED)
