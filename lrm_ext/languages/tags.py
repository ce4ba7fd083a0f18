"""Codes of languages as BCP-47 writes them, and what the Unicode CLDR knows about a language.

CLDR comes with Babel.
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
    """CLDR's entries for a language; None for unknown values.

    Attributes:
        name: English name.
        native_name: Name in the language itself.
        script: ISO 15924 code of its most likely script.
        iso_639_3: Three-letter code.
    """

    name: str | None = None
    native_name: str | None = None
    script: str | None = None
    iso_639_3: str | None = None


def normalize_tag(code: str) -> str:
    """Normalises a tag as BCP-47 recommends: `sk`, `zh-Hant`, `pt-BR`, `sr-Latn-ME`, `de-1996`.

    Raises:
        ConfigError: The tag is not well-formed.
    """
    match = _TAG.fullmatch(code)
    if match is None or len(code) > _MAX_LENGTH:
        raise ConfigError(
            f"{code!r} is not a language code; expected a BCP-47 tag such as sk, zh-Hant or pt-BR."
        )
    script, region = match["script"] or "", match["region"] or ""
    parts = filter(None, (match["language"].lower(), script.title(), region.upper()))
    return "-".join(parts) + (match["variants"] + (match["private"] or "")).lower()


def preferred_tag(code: str) -> str | None:
    """Returns the preferred code for an alias, `sk` for `slk`; None if `code` is preferred."""
    language, hyphen, rest = code.partition("-")
    usual = str(_cldr("language_aliases").get(language, language))
    # an alias such as sh -> sr_Latn is more than another name
    return usual + hyphen + rest if usual != language and "_" not in usual else None


def known_names(code: str) -> KnownNames:
    """Looks up a normalised tag in CLDR."""
    from babel import Locale, UnknownLocaleError

    match = _TAG.fullmatch(code)
    assert match is not None, code
    language, script, region = match["language"], match["script"], match["region"]
    if match["variants"] or match["private"]:
        region = None  # CLDR has no names of variants
    subtags = _cldr("likely_subtags")
    full = subtags.get(f"{language}_{region}") or subtags.get(language) or language
    script_used = script or (*full.split("_"), None)[1]
    three = _three_letters(language)
    try:
        locale = Locale(language, territory=region, script=script)
    except (UnknownLocaleError, ValueError):
        return KnownNames(Locale("en").languages.get(language), None, script_used, three)
    return KnownNames(locale.get_display_name("en"), locale.get_display_name(), script_used, three)


def _three_letters(language: str) -> str | None:
    if len(language) == 3:
        return language
    aliases = _cldr("language_aliases").items()
    found = sorted(old for old, new in aliases if new == language and len(old) == 3)
    if len(found) == 1:
        return found[0]
    # of `slk` and `slo`, `ces` and `cze`, take the one that is in the lists of engines
    used = {code.partition("_")[0] for code in nllb_codes()}
    return next((code for code in found if code in used), None)


def nllb_codes() -> tuple[str, ...]:
    """Returns the codes of NLLB-200, such as `slk_Latn`; none if transformers lacks the list."""
    try:
        from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES
    except ImportError:
        return ()
    return tuple(FAIRSEQ_LANGUAGE_CODES)


def m2m100_codes() -> tuple[str, ...]:
    """Returns the codes of M2M-100; none if transformers lacks the list."""
    try:
        from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES
    except ImportError:
        return ()
    return tuple(FAIRSEQ_LANGUAGE_CODES["m2m100"])


@cache
def _cldr(name: Literal["language_aliases", "likely_subtags"]) -> dict[str, Any]:
    from babel.core import get_global

    return dict(get_global(name))
