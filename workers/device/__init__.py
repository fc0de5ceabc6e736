"""The device process, which alone imports torch, and the client that feeds it through shared memory."""
