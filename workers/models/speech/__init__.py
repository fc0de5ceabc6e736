"""Models that listen: what is said in a recording, and what sort of recording it is."""
