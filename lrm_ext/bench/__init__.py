"""Run the benchmarks of `scripts/bench` and write their figures into a document."""
