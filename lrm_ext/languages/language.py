"""What the project knows of one language, read from one TOML file and checked.

Input: `data/<code>.toml`. Output: a frozen `Language`. Everything that differs between languages
is in those files; there is no code for a single language anywhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llava.errors import ConfigError
from lrm_ext.languages._toml import load_toml

# Every key must be there, and no other; `{}` stands for a table of strings with free keys.
SCHEMA: Mapping[str, Any] = {
    "code": str,
    "name": str,
    "native_name": str,
    "paper_label": str,
    "script": str,
    "spaced": bool,
    "punctuation": {"full_stop": str},
    "answers": {"yes": str, "no": str},
    "answers_to": {},
    "prompts": {"short_answer": str, "option_letter": str},
    "format_prompts": {},
    "short_answers": {},
    "instructions": {
        "epvqa": str,
        "translation_marker": str,
        "answer_marker": str,
        "answer_in": {},
        "named_by": {},
    },
    "conversation": {"system": str},
    "local": {"yes": list, "no": list, "letters": {}, "stop": list, "word_letters": list},
    "numbers": {},
    "engines": {},
    "ui": {},
    "quality": {},
}
# These may be left out.
OPTIONAL = ("answers_to", "instructions.named_by", "numbers", "ui", "quality")
# These may be empty, depending on the language.
_MAY_BE_EMPTY = (
    "punctuation.full_stop",
    "local.stop",
    "local.word_letters",
    "local.letters",
    "engines",
)
# Read and checked by those who use it.
_ELSEWHERE = ("quality",)
# A value that begins so waits for its translation (`lrm languages add` writes such values).
PENDING = "TODO"
_ENGLISH_POLARITY = {"yes": "yes", "y": "yes", "no": "no", "not": "no", "n": "no"}


@dataclass(frozen=True)
class LocalWords:
    """Word lists by which an answer in the language is read (mode `local`, EVAL_SPEC 7).

    Attributes:
        yes: Words or phrases that affirm.
        no: Words or phrases that deny or negate.
        letters: One-letter answers, each "yes" or "no".
        stop: Phrases that begin like an answer and decide nothing.
        word_letters: Option letters that are also words of the language.
    """

    yes: tuple[str, ...]
    no: tuple[str, ...]
    letters: Mapping[str, str]
    stop: tuple[str, ...]
    word_letters: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        code: Its code in data and on the command line.
        name: English name.
        native_name: Its own name.
        paper_label: Column label in the paper's tables.
        script: ISO 15924 code.
        spaced: Whether white space separates words.
        full_stop: What ends a sentence; "" if nothing does, as in Thai.
        yes: The answer "yes" as it is trained.
        no: The answer "no" as it is trained.
        answers_to: Where yes and no depend on the question (Welsh "Oes ...?", "Ydy ...?"): by what
            a question begins with, its yes and its no, as `(yes, no)`.
        short_answer: Response-format prompt for yes/no and short answers (EVAL_SPEC 6).
        option_letter: Response-format prompt for multiple choice (EVAL_SPEC 6).
        fixed_prompts: Other requests that LLaVA's data repeats, by name. One that ends with a colon
            is followed by what it asks about.
        fixed_answers: Short answers that are always said the same way, by name.
        epvqa_instruction: "First translate the question into English, then answer in <this>."
        translation_marker: What an EP-VQA reply begins with.
        answer_marker: What begins the second part of an EP-VQA reply, on its own line.
        answer_in: For other languages and this one, "Answer in <it>." said in this language. For
            itself and English it is always there (see `registry.get_language`).
        named_by: "Answer in <this language>." said in other languages, for their `answer_in`.
        system: System sentence of a conversation that is answered in this language.
        local: Word lists for reading answers.
        numbers: The words for numbers, by number in digits: separated by blanks, `*` where other
            letters may follow; empty if not known.
        engine_codes: What each translation engine calls the language; engines that are not there
            do not have it.
        ui: Texts of the demo's page, by name; those that are not there stay English.
        quality: What is normal for translations into it, where that is known; read and checked by
            `lrm_ext.translation.quality.base`.
        path: Its file, for messages.
    """

    code: str
    name: str
    native_name: str
    paper_label: str
    script: str
    spaced: bool
    full_stop: str
    yes: str
    no: str
    answers_to: Mapping[str, tuple[str, str]]
    short_answer: str
    option_letter: str
    fixed_prompts: Mapping[str, str]
    fixed_answers: Mapping[str, str]
    epvqa_instruction: str
    translation_marker: str
    answer_marker: str
    answer_in: Mapping[str, str]
    named_by: Mapping[str, str]
    system: str
    local: LocalWords
    numbers: Mapping[str, str]
    engine_codes: Mapping[str, str]
    ui: Mapping[str, str]
    quality: Mapping[str, Any]
    path: Path

    @property
    def format_prompts(self) -> tuple[str, ...]:
        """Response-format prompts; where one is used, it is the last line of the question."""
        return (self.short_answer, self.option_letter)

    def answer_to(self, question: str, is_yes: bool) -> str:
        """Yes or no as it is said to a question: the longest beginning in `answers_to` decides."""
        text = question.casefold()
        fitting = [start for start in self.answers_to if text.startswith(start.casefold())]
        pair = self.answers_to[max(fitting, key=len)] if fitting else (self.yes, self.no)
        return pair[0 if is_yes else 1]


def load_language(path: Path) -> Language:
    """Read one language file.

    Raises:
        ConfigError: A key is missing, unknown, of another type or empty; the code is not the
            file's name; or a word means both yes and no.
    """
    data = load_toml(path)
    _check_table(data, SCHEMA, path, prefix="")
    if data["code"] != path.stem:
        raise ConfigError(f"{path}: code is {data['code']!r}, expected the file's name.")
    local = data["local"]
    _check_polarity(local, path)
    _check_numbers(data.get("numbers", {}), path)
    instructions = data["instructions"]
    return Language(
        code=data["code"],
        name=data["name"],
        native_name=data["native_name"],
        paper_label=data["paper_label"],
        script=data["script"],
        spaced=data["spaced"],
        full_stop=data["punctuation"]["full_stop"],
        yes=data["answers"]["yes"],
        no=data["answers"]["no"],
        answers_to=_answers_to(data.get("answers_to", {}), path),
        short_answer=data["prompts"]["short_answer"],
        option_letter=data["prompts"]["option_letter"],
        fixed_prompts=MappingProxyType(data["format_prompts"]),
        fixed_answers=MappingProxyType(data["short_answers"]),
        epvqa_instruction=instructions["epvqa"],
        translation_marker=instructions["translation_marker"],
        answer_marker=instructions["answer_marker"],
        answer_in=MappingProxyType(instructions["answer_in"]),
        named_by=MappingProxyType(instructions.get("named_by", {})),
        system=data["conversation"]["system"],
        local=LocalWords(
            yes=tuple(local["yes"]),
            no=tuple(local["no"]),
            letters=MappingProxyType(local["letters"]),
            stop=tuple(local["stop"]),
            word_letters=tuple(local["word_letters"]),
        ),
        numbers=MappingProxyType(data.get("numbers", {})),
        engine_codes=MappingProxyType(data["engines"]),
        ui=MappingProxyType(data.get("ui", {})),
        quality=MappingProxyType(data.get("quality", {})),
        path=path,
    )


def _check_table(table: Any, schema: Mapping[str, Any], path: Path, prefix: str) -> None:
    """Check a table's keys and the types of its values, nested ones too."""
    where = prefix.rstrip(".") or "top level"
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {where} is {type(table).__name__}, expected a table.")
    optional = {key for key in schema if prefix + key in OPTIONAL}
    missing = sorted(set(schema) - set(table) - optional)
    unknown = sorted(set(table) - set(schema))
    if missing or unknown:
        faults = [f"{prefix}{key} is missing" for key in missing]
        faults += [f"{prefix}{key} is unknown" for key in unknown]
        raise ConfigError(f"{path}: {'; '.join(faults)}. Known at {where}: {', '.join(schema)}.")
    for key, kind in schema.items():
        name = prefix + key
        if key not in table:
            continue
        if name in _ELSEWHERE:
            if not isinstance(table[key], dict):
                raise ConfigError(f"{path}: {name} is {table[key]!r}, expected a table.")
        elif isinstance(kind, Mapping):
            if kind:
                _check_table(table[key], kind, path, f"{name}.")
            else:
                _check_free_table(table[key], path, name)
        else:
            _check_value(table[key], kind, path, name)


def _check_free_table(table: Any, path: Path, name: str) -> None:
    if not isinstance(table, dict) or (not table and name not in _MAY_BE_EMPTY):
        raise ConfigError(f"{path}: {name} is {table!r}, expected a table of strings.")
    for key, value in table.items():
        _check_value(value, str, path, f"{name}.{key}")


def _check_value(value: Any, kind: type, path: Path, name: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{path}: {name} is {value!r} ({type(value).__name__}), expected {kind.__name__}."
        )
    if isinstance(value, str) and value.startswith(PENDING):
        raise ConfigError(f"{path}: {name} is not translated yet: {value!r}.")
    if isinstance(value, str) and value != value.strip():
        raise ConfigError(f"{path}: {name} is {value!r}: white space around it.")
    if value in ("", []) and name not in _MAY_BE_EMPTY:
        raise ConfigError(f"{path}: {name} is empty.")
    if isinstance(value, list):
        for i, item in enumerate(value):
            _check_value(item, str, path, f"{name}[{i}]")


def _check_polarity(local: Mapping[str, Any], path: Path) -> None:
    """Demand that no word, letter or English word that counts too means both yes and no."""
    meanings: dict[str, str] = {}
    entries = [(word, "yes") for word in local["yes"]] + [(word, "no") for word in local["no"]]
    for word, meaning in (*_ENGLISH_POLARITY.items(), *entries, *local["letters"].items()):
        if meaning not in ("yes", "no"):
            raise ConfigError(f"{path}: local.letters.{word} is {meaning!r}, expected yes or no.")
        if meanings.setdefault(_fold(word), meaning) != meaning:
            raise ConfigError(
                f"{path}: local: {word!r} would mean both yes and no (English words count in "
                "every language); take it out of one list."
            )


def _answers_to(table: Mapping[str, str], path: Path) -> Mapping[str, tuple[str, str]]:
    pairs: dict[str, tuple[str, str]] = {}
    for start, text in table.items():
        yes, slash, no = map(str.strip, text.partition("/"))
        if not (yes and slash and no):
            raise ConfigError(
                f"{path}: answers_to.{start} is {text!r}, expected its yes and its no: "
                '"Oes / Nac oes".'
            )
        pairs[start] = (yes, no)
    return MappingProxyType(pairs)


def _check_numbers(numbers: Mapping[str, str], path: Path) -> None:
    for number, words in numbers.items():
        if not (number.isascii() and number.isdigit()):
            raise ConfigError(f"{path}: numbers.{number}: expected a number in digits as the key.")
        for word in words.split():
            if not word.removesuffix("*") or "*" in word[:-1]:
                raise ConfigError(
                    f"{path}: numbers.{number} has {word!r}, expected a word, or the beginning of "
                    "one with * at its end."
                )


def _fold(word: str) -> str:
    """Casefold, without marks on Latin letters, which people leave out when typing."""
    kept: list[str] = []
    for character in unicodedata.normalize("NFD", word.casefold()):
        if unicodedata.combining(character) and kept and kept[-1].isascii():
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))
