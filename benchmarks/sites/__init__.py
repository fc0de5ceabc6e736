"""The parts of `benchmarks.edge`: a site in a network namespace and on one core, its link, its centre, its programs."""
