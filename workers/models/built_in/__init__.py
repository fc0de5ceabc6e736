"""The models that every fleet has; `builtin.toml` declares them."""
