"""The code that producers and workers share: messages, queues, the task catalogue, blobs and the broker connection."""
