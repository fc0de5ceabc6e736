"""A Celery result backend on the store, for users' own Celery applications."""
