"""Counts the tokens of a name and a question in each language, by size of the vocabulary.

Usage: python tools/bench/mini_tokenizer.py [--sizes 2000 3000 4000]

Trains the tokenizer of the preset `mini` at each size (about half a minute each) and prints a
table. A language whose names are split into pieces needs more steps to learn them.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llava.model.tokenizer import load_tokenizer
from lrm_ext.emoji.conversations import make_questions, render_question
from lrm_ext.emoji.scenes import LANGUAGES, load_concepts, sample_scene
from tools.mini.language_model import train_tokenizer
from tools.mini.recipe import LanguageModelRecipe, TokenizerRecipe

NUM_SCENES = 200


def main() -> None:
    """Trains, counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 3000, 4000])
    sizes = parser.parse_args().sizes
    table = Table("vocabulary", "tokens per", *LANGUAGES)
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            recipe = dataclasses.replace(TokenizerRecipe(), vocab_size=size)
            train_tokenizer(recipe, LanguageModelRecipe(), Path(folder))
            tokenizer = load_tokenizer(folder)
        for name, texts in (("name", names), ("question", questions)):
            means = [mean_tokens(tokenizer, texts(lang)) for lang in LANGUAGES]
            table.add_row(f"{size:,}", name, *[f"{mean:.2f}" for mean in means])
    Console().print(table)


def names(lang: str) -> list[str]:
    """Returns the names of all concepts."""
    return [concept.names[lang] for concept in load_concepts()]


def questions(lang: str) -> list[str]:
    """Returns the same questions in every language."""
    rng = random.Random(0)
    scenes = [sample_scene(rng, "train") for _ in range(NUM_SCENES)]
    return [
        render_question(question, scene, lang)[0]
        for scene in scenes
        for question in make_questions(scene, rng)
    ]


def mean_tokens(tokenizer: object, texts: list[str]) -> float:
    """Returns the mean number of tokens of a text."""
    ids = tokenizer(texts, add_special_tokens=False).input_ids  # type: ignore[operator]
    return sum(map(len, ids)) / len(ids)


if __name__ == "__main__":
    main()
