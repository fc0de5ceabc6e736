"""The SQL store: jobs, envelopes, results and batches. Knows neither the producers nor the workers.

`results_store.store.Store` is the way in; importing this package alone loads no database code.
"""
