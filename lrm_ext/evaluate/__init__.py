"""Evaluation: answer the questions of a benchmark, score the answers, say how sure that is."""
