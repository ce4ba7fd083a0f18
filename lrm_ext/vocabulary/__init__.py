"""More pieces for a tokenizer whose language was an afterthought (`lrm extend-vocab`)."""
