"""Work that waits: for its time, for the end of a pause, or with another priority."""
