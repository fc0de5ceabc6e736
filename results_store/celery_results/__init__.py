"""Results as Celery applications read them: a Celery result backend on the store."""
