"""Flags that training on a mixture adds to LLaVA's.

Input: the command line. Output: `LrmArguments`. LLaVA's own flags are in `llava.train.arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llava.errors import ConfigError

NO_CACHE, AUTO_CACHE = "none", "auto"
CACHE_DTYPES = ("float16", "float32")


@dataclass
class LrmArguments:
    """What is mixed, and how it is fed."""

    corpus_path: str | None = field(
        default=None, metadata={"help": "Parallel corpus (folder with corpus.toml)."}
    )
    mixture_path: str | None = field(
        default=None,
        metadata={"help": "Mixture file (TOML); left out: all languages and instructions evenly."},
    )
    feature_cache: str = field(
        default=NO_CACHE,
        metadata={
            "help": "none; auto (beside the corpus); or a folder: the frozen tower runs once per "
            "picture, training reads its output."
        },
    )
    feature_cache_dtype: str = field(default="float16", metadata={"help": "float16 or float32."})
    length_window: int = field(
        default=64,
        metadata={"help": "Batches among which samples are sorted by length; 0: not at all."},
    )
    pack_window: int = field(
        default=0,
        metadata={
            "help": "With --packing: steps among which samples are sorted by length, so that few "
            "samples a rank can be dealt evenly; 0: the mixture's order."
        },
    )
    encode_cache: int = field(
        default=100_000, metadata={"help": "Tokenised samples that are kept in memory."}
    )

    jpeg_draft: bool = field(
        default=False,
        metadata={
            "help": "Decode JPEG files of at least four times the tower's side at a fraction of "
            "their size: faster, but not the same pixels."
        },
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value is none of the choices.
        """
        if self.feature_cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"--feature_cache_dtype is {self.feature_cache_dtype!r}; choose from: "
                f"{', '.join(CACHE_DTYPES)}"
            )
        if min(self.length_window, self.pack_window, self.encode_cache) < 0:
            raise ConfigError(
                "--length_window, --pack_window and --encode_cache must not be negative"
            )
        # what a switch would be called with
        switches = {"true": AUTO_CACHE, "false": NO_CACHE, "": NO_CACHE}
        self.feature_cache = switches.get(self.feature_cache.lower(), self.feature_cache)
