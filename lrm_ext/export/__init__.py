"""Checkpoints to and from transformers' own LLaVA classes, for tools that know only those."""
