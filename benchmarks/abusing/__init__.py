"""The parts of `benchmarks.abuse`: attackers in processes of their own, and the tenant whose items go on meanwhile."""
