"""One language's words and sentence patterns for the built-in corpus, read from `data/<lang>.toml`.

A vocabulary is checked when it is loaded: every language has the same keys, as many patterns of
each question, and an article for every concept where the language has articles.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.errors import ConfigError
from lrm_ext.corpus.emoji.concepts import backgrounds, categories, concepts_by_id
from lrm_ext.corpus.emoji.packed import LANGUAGES, load_toml

POSITIONS = ("top_left", "top_right", "bottom_left", "bottom_right")

# How many patterns of a question there are in every language, and what they have a place for.
NUM_PATTERNS = {
    "caption": 3,
    "existence": 3,
    "naming": 2,
    "position": 2,
    "counting": 2,
    "color": 2,
}
_FIELDS = {"existence": {"thing"}, "position": {"position"}}


@dataclass(frozen=True)
class Vocabulary:
    """Words and patterns of one language.

    Attributes:
        questions: Patterns by question.
        caption: Pattern of the answer to "caption".
        separator: What stands between the members of a list.
        last: What stands before the last member.
        positions: Words for the four quadrants.
        categories: Category nouns, with article where the language wants one.
        color_answers: Colour words as the question "color" asks for them.
        color_backgrounds: Colour words as the caption has them.
        articles: What stands before a concept's name, space included; empty without articles.
    """

    questions: Mapping[str, tuple[str, ...]]
    caption: str
    separator: str
    last: str
    positions: Mapping[str, str]
    categories: Mapping[str, str]
    color_answers: Mapping[str, str]
    color_backgrounds: Mapping[str, str]
    articles: Mapping[str, str]

    def join(self, parts: list[str]) -> str:
        """A list in words: "a dog, a cat and a car"."""
        *head, tail = parts
        return self.separator.join(head) + self.last + tail if head else tail


@functools.cache
def get_vocabulary(lang: str) -> Vocabulary:
    """The vocabulary of a language.

    Raises:
        ConfigError: The language is unknown, or its data file is not complete.
    """
    if lang not in LANGUAGES:
        raise ConfigError(
            f"the built-in corpus has no language {lang!r}; it has {', '.join(LANGUAGES)}."
        )
    data = load_toml(lang)
    try:
        vocabulary = Vocabulary(
            questions={key: tuple(value) for key, value in data["questions"].items()},
            caption=data["caption"]["answer"],
            separator=data["list"]["separator"],
            last=data["list"]["last"],
            positions=data["positions"],
            categories=data["categories"],
            color_answers={key: value["answer"] for key, value in data["colors"].items()},
            color_backgrounds={key: value["background"] for key, value in data["colors"].items()},
            articles=_articles(lang, data),
        )
    except KeyError as error:
        raise ConfigError(f"{lang}.toml of the built-in corpus lacks the key {error}.") from error
    _check(lang, vocabulary)
    return vocabulary


def _articles(lang: str, data: Mapping[str, Any]) -> dict[str, str]:
    articles: dict[str, str] = {}
    for article, concepts in data.get("articles", {}).items():
        for concept in concepts:
            if concept in articles:
                raise ConfigError(f"{lang}.toml: {concept!r} has two articles.")
            articles[concept] = article
    return articles


def _check(lang: str, vocabulary: Vocabulary) -> None:
    asked = {key for key, category in categories().items() if category.asked}
    keys: list[tuple[str, set[str], set[str]]] = [
        ("questions", set(vocabulary.questions), set(NUM_PATTERNS)),
        ("positions", set(vocabulary.positions), set(POSITIONS)),
        ("categories", set(vocabulary.categories), asked),
        ("colors", set(vocabulary.color_answers), set(backgrounds())),
    ]
    if vocabulary.articles:
        keys.append(("articles", set(vocabulary.articles), set(concepts_by_id())))
    for section, found, expected in keys:
        if found != expected:
            raise ConfigError(
                f"{lang}.toml: [{section}] lacks {sorted(expected - found)} and has "
                f"{sorted(found - expected)} too many."
            )
    for question, patterns in vocabulary.questions.items():
        if len(patterns) != NUM_PATTERNS[question]:
            raise ConfigError(
                f"{lang}.toml: question {question!r} has {len(patterns)} patterns, expected "
                f"{NUM_PATTERNS[question]}, as in every language."
            )
        for pattern in patterns:
            _check_fields(lang, pattern, _FIELDS.get(question, set()))
    _check_fields(lang, vocabulary.caption, {"objects", "background"})


def _check_fields(lang: str, pattern: str, expected: set[str]) -> None:
    found = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
    if found != expected:
        raise ConfigError(
            f"{lang}.toml: {pattern!r} has the places {sorted(found)}, expected {sorted(expected)}."
        )
