"""The paper's experiments in miniature: train every setting, keep what came of it, judge claims."""
