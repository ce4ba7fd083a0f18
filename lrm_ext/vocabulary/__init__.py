"""Adds tokens for a language to a tokenizer and its model (`lrm extend-vocab`)."""
