"""Benchmarks of speed and memory against peers; `python -m tools.bench --list` lists them."""
