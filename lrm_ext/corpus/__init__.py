"""The parallel corpus: the store on disk, importers, and the built-in corpus."""
