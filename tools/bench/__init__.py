"""Speed and memory, side by side with peers; `python -m tools.bench --list`."""
