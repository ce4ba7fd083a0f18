"""Training data: record -> sample -> rendered text -> ids and labels -> batch."""
