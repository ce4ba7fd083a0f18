"""The demo: `llava.serve` started by one command, with a choice of the answer's language."""
