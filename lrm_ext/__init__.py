"""Everything that the LRM-LLaVA paper adds to LLaVA: languages, instructions, mixtures."""

__version__ = "0.1.0"
