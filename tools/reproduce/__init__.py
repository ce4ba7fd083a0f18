"""The paper's experiments in miniature: trains every setting, stores the results, judges claims."""
