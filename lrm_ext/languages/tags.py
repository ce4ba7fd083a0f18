"""Language codes: BCP-47 tags, and what the Unicode CLDR knows of them (through Babel).

Input: a code as typed. Output: the code as its file is named. A code becomes a file's and a
folder's name, so nothing but a well-formed tag passes: letters, digits and single hyphens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from llava.errors import ConfigError

# RFC 5646, section 2.1, without extended language subtags, extensions and irregular tags.
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?P<variants>(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*)(?P<private>-x(?:-[a-z0-9]{1,8})+)?",
    re.IGNORECASE,
)
_MAX_LENGTH = 35  # RFC 5646, section 4.4.1


@dataclass(frozen=True)
class KnownNames:
    """What CLDR says of a language; None where it says nothing.

    Attributes:
        name: English name.
        native_name: Its own name.
        script: ISO 15924 code of the script that it is most likely written in.
        iso_639_3: Code of three letters.
    """

    name: str | None = None
    native_name: str | None = None
    script: str | None = None
    iso_639_3: str | None = None


def normalize_tag(code: str) -> str:
    """Write a tag as BCP-47 recommends: `sk`, `zh-Hant`, `pt-BR`, `sr-Latn-ME`, `de-1996`.

    Raises:
        ConfigError: It is not well-formed.
    """
    match = _TAG.fullmatch(code)
    if match is None or len(code) > _MAX_LENGTH:
        raise ConfigError(
            f"{code!r} is not a language code; expected a BCP-47 tag such as sk, zh-Hant or pt-BR."
        )
    parts = [match["language"].lower()]
    if match["script"]:
        parts.append(match["script"].title())
    if match["region"]:
        parts.append(match["region"].upper())
    return "-".join(parts) + (match["variants"] + (match["private"] or "")).lower()


def preferred_tag(code: str) -> str | None:
    """The usual code where another was given: `sk` for `slk`; None if it is the usual one."""
    language, hyphen, rest = code.partition("-")
    usual = str(_cldr("language_aliases").get(language, language))
    # an alias such as sh -> sr_Latn says more than another name
    return usual + hyphen + rest if usual != language and "_" not in usual else None


def known_names(code: str) -> KnownNames:
    """Look a normalised tag up in CLDR."""
    from babel import Locale, UnknownLocaleError

    match = _TAG.fullmatch(code)
    assert match is not None, code
    language, script, region = match["language"], match["script"], match["region"]
    if match["variants"] or match["private"]:
        region = None  # names of variants are not in CLDR's lists
    english = Locale("en")
    fallback = english.languages.get(language)
    likely = script or _likely_script(language, region)
    three = _three_letters(language)
    try:
        locale = Locale(language, territory=region, script=script)
    except (UnknownLocaleError, ValueError):
        return KnownNames(fallback, None, likely, three)
    return KnownNames(locale.get_display_name("en"), locale.get_display_name(), likely, three)


def _likely_script(language: str, region: str | None) -> str | None:
    table = _cldr("likely_subtags")
    full = table.get(f"{language}_{region}") or table.get(language)
    parts = full.split("_") if full else []
    return parts[1] if len(parts) > 1 else None


def _three_letters(language: str) -> str | None:
    if len(language) == 3:
        return language
    found = sorted(
        old for old, new in _cldr("language_aliases").items() if new == language and len(old) == 3
    )
    return found[0] if len(found) == 1 else _terminology_code(language, found)


def _terminology_code(language: str, found: list[str]) -> str | None:
    """Of `slk` and `slo`, `ces` and `cze` the first is used: the one engines' lists have."""
    return next((code for code in found if code in _nllb_languages()), None)


@cache
def _nllb_languages() -> frozenset[str]:
    return frozenset(code.partition("_")[0] for code in nllb_codes())


def nllb_codes() -> tuple[str, ...]:
    """Codes of NLLB-200's languages, such as `slk_Latn`; none if transformers has no such list."""
    try:
        from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES
    except ImportError:
        return ()
    return tuple(FAIRSEQ_LANGUAGE_CODES)


def m2m100_codes() -> tuple[str, ...]:
    """Codes of M2M-100's languages; none if transformers has no such list."""
    try:
        from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES
    except ImportError:
        return ()
    return tuple(FAIRSEQ_LANGUAGE_CODES["m2m100"])


@cache
def _cldr(name: Literal["language_aliases", "likely_subtags"]) -> dict[str, Any]:
    from babel.core import get_global

    return dict(get_global(name))
