"""What producers and workers share: messages, queues, the catalogue of tasks, blobs, and the way to the broker."""
