"""The training loop: steps, checkpoints and processes, for any subject with tasks, examples and a network."""
