"""Check `script`: letters of another script than the language's."""

from __future__ import annotations

import re
from functools import cache

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

# By ISO 15924 code. Scripts that are not here are not checked.
_RANGES = {
    "Latn": r"A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Cyrl": r"\u0400-\u052f",
    "Grek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Arab": r"\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "Hebr": r"\u0590-\u05ff",
    "Deva": r"\u0900-\u097f",
    "Thai": r"\u0e00-\u0e7f",
    "Hans": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007",
    "Hant": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007",
    "Jpan": r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "Kore": r"\uac00-\ud7af\u1100-\u11ff\u3130-\u318f",
}


def check_script(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """The share of letters that are not of the language's script.

    Words that stand in the text as well (names, units) are not counted, and letters that belong to
    the other way of writing Chinese are counted as foreign.
    """
    script = get_language(pair.target_lang).script
    if script not in _RANGES:
        return None
    if not pair.target_words:
        return None
    if not _other_letters(script).search(pair.target_prose) and not (
        script in ("Hans", "Hant")
        and any(_is_other_chinese(c, script) for c in set(pair.target_prose))
    ):
        return Measured(0.0, "")
    kept = {word.casefold() for word in _WORD.findall(pair.source)}
    letters = "".join(w for w in _WORD.findall(pair.target_prose) if w.casefold() not in kept)
    if not letters:
        return None
    foreign = _foreign(script).findall(letters)
    if script in ("Hans", "Hant"):
        foreign += [c for c in letters if _is_other_chinese(c, script)]
    listed = "".join(dict.fromkeys(foreign))[:20]
    return Measured(len(foreign) / max(1, len(letters)), f"letters that are not {script}: {listed}")


_WORD = re.compile(r"[A-Za-z]+|[^\W\d_]")


@cache
def _other_letters(script: str) -> re.Pattern[str]:
    """Letters of other scripts; `_foreign` finds marks and blanks as well."""
    return re.compile(f"[^\\W\\d_{_RANGES[script]}]")


@cache
def _foreign(script: str) -> re.Pattern[str]:
    return re.compile(f"[^{_RANGES[script]}]")


@cache
def _is_other_chinese(character: str, script: str) -> bool:
    """Whether a character is only in the old standard of the other way of writing."""
    ours, other = ("gb2312", "big5") if script == "Hans" else ("big5", "gb2312")
    return not _has(character, ours) and _has(character, other)


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
