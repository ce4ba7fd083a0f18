"""From English rows to rows in other languages: engines, protection, cache, quality, runner."""
