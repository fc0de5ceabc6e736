"""A training as a job: its names, its order and its reports, on which submitter, node and trainer agree."""
