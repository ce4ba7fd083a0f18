"""Train on a mixture: the data module for llava's `train()`, its sampler, the feature cache."""
