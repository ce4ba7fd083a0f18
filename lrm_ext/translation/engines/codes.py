"""What engines call languages: the `[engines]` table of the language files.

Input: an engine's name. Output: codes of the languages that it has, and its own name for each.
"""

from __future__ import annotations

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language, list_languages


def languages_of(engine: str) -> tuple[str, ...]:
    """Codes of the languages that an engine translates into from English."""
    return tuple(
        lang
        for lang in list_languages()
        if lang != ENGLISH and engine in get_language(lang).engine_codes
    )


def code_of(engine: str, lang: str) -> str:
    """What an engine calls a language.

    Raises:
        ConfigError: The language's file has no entry for the engine.
    """
    code = get_language(lang).engine_codes.get(engine)
    if code is None:
        raise ConfigError(
            f"engine {engine!r} does not have {lang!r}; add its code under [engines] in the "
            f"language's file, or choose from: {', '.join(languages_of(engine))}."
        )
    return code
