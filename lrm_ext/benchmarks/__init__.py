"""Benchmarks: read questions, parse answers. No model and no predictions here."""
