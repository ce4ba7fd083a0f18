"""Further benchmarks: one mapping file each, from their own columns to questions."""
