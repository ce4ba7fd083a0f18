"""All languages that have a data file, in a fixed order.

Input: a code. Output: its `Language`. To add a language, put `<code>.toml` into `data/` and
"Answer in <it>." into the other files; `lrm languages` says what is missing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llava.errors import ConfigError
from lrm_ext.languages.language import Language, load_language

DATA_DIR = Path(__file__).parent / "data"
# The paper's order, English first; a language that is added later follows in code order.
_ORDER = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")


def list_languages() -> tuple[str, ...]:
    """Codes of all languages: the paper's ten in its order, then any others."""
    there = {path.stem for path in DATA_DIR.glob("*.toml")}
    ours = tuple(code for code in _ORDER if code in there)
    return ours + tuple(sorted(there - set(ours)))


@cache
def get_language(code: str) -> Language:
    """Look a language up.

    Raises:
        ConfigError: There is no such language (the choices are listed), or its file is at fault.
    """
    if code not in list_languages():
        raise ConfigError(f"unknown language {code!r}; choose from: {', '.join(list_languages())}.")
    return load_language(DATA_DIR / f"{code}.toml")


def check_languages() -> list[str]:
    """Check every file, and that the files know each other.

    Returns:
        One line per fault; empty if all is well.
    """
    codes = list_languages()
    faults: list[str] = []
    for code in codes:
        try:
            language = get_language(code)
        except ConfigError as error:
            faults.append(str(error))
            continue
        path = DATA_DIR / f"{code}.toml"
        for kind, some in (
            ("missing", [c for c in codes if c not in language.answer_in]),
            ("for an unknown language", [c for c in language.answer_in if c not in codes]),
        ):
            faults += [f"{path}: instructions.answer_in.{c} is {kind}." for c in some]
    return faults
