"""The splits of a training among processes: rows, layers, states or stages, each by an engine of PyTorch."""
