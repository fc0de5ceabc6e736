"""The classes of the models that `builtin.toml` declares."""
