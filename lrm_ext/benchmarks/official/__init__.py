"""Readers of the benchmarks' official distributions."""
