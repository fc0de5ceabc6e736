"""What `benchmarks.chaos` is made of: the load, the faults, and the verdict."""
