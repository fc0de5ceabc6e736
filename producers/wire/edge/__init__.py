"""The names of a site's cascade: the table ``[edge]`` of its ``fleet.toml``."""
