"""Flags that training on a mixture adds to LLaVA's.

Input: the command line. Output: `LrmArguments`. LLaVA's own flags are in `llava.train.arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llava.errors import refuse

NO_CACHE, WITH_CACHE, AUTO_CACHE = "off", "on", "auto"
_CACHE_SWITCHES = {"none": NO_CACHE, "false": NO_CACHE, "": NO_CACHE, "true": WITH_CACHE}
CACHE_DTYPES = ("float16", "float32")


def read_cache_switch(value: str) -> str:
    """Returns `off`, `on` or `auto` for any spelling of them; another value is a folder."""
    switch = _CACHE_SWITCHES.get(value.lower(), value.lower())
    return switch if switch in (NO_CACHE, WITH_CACHE, AUTO_CACHE) else value


@dataclass
class LrmArguments:
    """Flags of the mixture, its features, its order and its validation."""

    corpus_path: str | None = field(
        default=None, metadata={"help": "Parallel corpus (folder with corpus.toml)."}
    )
    mixture_path: str | None = field(
        default=None,
        metadata={"help": "Mixture file (TOML); by default all languages and instructions evenly."},
    )
    languages: str | None = field(
        default=None,
        metadata={
            "help": "Languages besides English, evenly, in place of the mixture's: hr,sw; all: "
            "every language of the corpus."
        },
    )
    feature_cache: str = field(
        default=NO_CACHE,
        metadata={
            "help": "Run the frozen tower once per image and train on its features. on: store them "
            "beside the corpus; auto: the same, but off for a LLaVA JSON file and for a trained "
            "tower; off; or a folder."
        },
    )
    feature_cache_dtype: str = field(default="float16", metadata={"help": "float16 or float32."})
    length_window: int = field(
        default=64,
        metadata={"help": "Batches within which samples are sorted by length; 0: do not sort."},
    )
    pack_window: int = field(
        default=0,
        metadata={
            "help": "With --packing: steps within which samples are sorted by length, which "
            "balances ranks with few samples; 0: the mixture's order."
        },
    )
    encode_cache: int = field(
        default=100_000, metadata={"help": "Tokenized samples to keep in memory."}
    )
    alignment_loss: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a contrastive loss between images and their texts in English and "
            "the sample's language; 0: none. Not part of the paper's recipe."
        },
    )
    eval_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the corpus' images that is held out of training, with all their "
            "rows, for a validation loss (--eval_strategy steps --eval_steps N)."
        },
    )
    eval_corpus_path: str | None = field(
        default=None, metadata={"help": "A corpus to validate on, in place of --eval_share."}
    )
    eval_samples: int = field(
        default=500,
        metadata={"help": "Samples of a validation, the same number in every language."},
    )
    eval_benchmark: str = field(
        default="scenes-val",
        metadata={"help": "Benchmark, or folder of questions, to ask at each validation."},
    )
    eval_questions: int = field(
        default=0,
        metadata={"help": "Questions to ask in each language at each validation; 0: none."},
    )
    early_stop_patience: int = field(
        default=0,
        metadata={"help": "End the run after so many validations without a better loss; 0: never."},
    )

    jpeg_draft: bool = field(
        default=False,
        metadata={
            "help": "Decode JPEG files of at least four times the tower's side at a fraction of "
            "their size: faster, but with slightly different pixels."
        },
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is invalid.
        """
        refuse(
            {
                f"--feature_cache_dtype is {self.feature_cache_dtype!r}; choose from: "
                f"{', '.join(CACHE_DTYPES)}": self.feature_cache_dtype not in CACHE_DTYPES,
                "--length_window, --pack_window and --encode_cache must not be negative": (
                    min(self.length_window, self.pack_window, self.encode_cache) < 0
                ),
                f"--alignment_loss is {self.alignment_loss}, expected 0 or more": (
                    self.alignment_loss < 0
                ),
                f"--eval_share is {self.eval_share}, expected a share in [0, 1)": (
                    not 0 <= self.eval_share < 1
                ),
                "--eval_share and --eval_corpus_path exclude each other": (
                    self.eval_share and self.eval_corpus_path is not None
                ),
                "--eval_samples must be 1 or more, --eval_questions and --early_stop_patience must "
                "not be negative": (
                    self.eval_samples < 1 or min(self.eval_questions, self.early_stop_patience) < 0
                ),
            }
        )
        self.feature_cache = read_cache_switch(self.feature_cache)

    @property
    def validates(self) -> bool:
        """Whether there is data to validate on."""
        return bool(self.eval_share) or self.eval_corpus_path is not None
