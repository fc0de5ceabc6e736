"""The Celery worker, which takes messages from the queues. Only this room imports Celery."""
