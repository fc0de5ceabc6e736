"""Programs that keep this repository in order; none is in the wheel."""
