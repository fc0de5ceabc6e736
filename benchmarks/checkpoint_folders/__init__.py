"""Small checkpoints of many architectures, for `benchmarks.checkpoints`: tables of configs, and the code that writes them."""
