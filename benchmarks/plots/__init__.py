"""The kept results as pictures: one SVG a benchmark, made of nothing but benchmarks/results/*.json."""
