"""Orders and groups languages where there are more of them than a table or a line can hold.

Up to `MAX_ROWS` languages are shown one by one, in their usual order. Of more the worst come first,
and the rest is grouped by script. What is worst is said by a value of each language, of which less
is worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final

from lrm_ext.languages.registry import ENGLISH, get_language, language_name, list_languages

# with a heading and remarks they fill a terminal of 24 lines
MAX_ROWS: Final = 20
NUM_WORST: Final = 10
OTHER: Final = "other"
# parts of a script, which CLDR calls "Simplified" and "Traditional"
_WHOLE: Final = {"Hans": "Hani", "Hant": "Hani"}
SHORT_TABLE: Final = (
    f"The worst {NUM_WORST} are rows of their own, the others are together by script; --all shows "
    "every language."
)
ALONE: Final = "Scripts of one language"
STRANGERS: Final = "Codes without a language file"


def script_name(code: str) -> str:
    """Returns the English name of a language's script; "other" for a code without a language."""
    from babel import Locale

    if code not in list_languages():
        return OTHER
    script = get_language(code).script
    return str(Locale("en").scripts.get(_WHOLE.get(script, script), script))


def group_by_script(values: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Groups languages by script: the script with the least mean first, in it the least value.

    Args:
        values: By code.
    """
    groups: dict[str, list[str]] = {}
    for code in sorted(values, key=lambda code: values[code]):
        groups.setdefault(script_name(code), []).append(code)
    means = {script: fmean(values[code] for code in codes) for script, codes in groups.items()}
    ordered = sorted(groups.items(), key=lambda group: (group[0] == OTHER, means[group[0]]))
    return [tuple(codes) for _, codes in ordered]


def headed_groups(values: Mapping[str, float]) -> list[tuple[str, tuple[str, ...]]]:
    """Groups languages as `group_by_script` does, with a heading each.

    Scripts of one language are one group, and so are codes without a language; they are last.

    Args:
        values: By code.
    """
    several: dict[str, tuple[str, ...]] = {}
    last: dict[str, tuple[str, ...]] = {ALONE: (), STRANGERS: ()}
    for codes in group_by_script(values):
        name = script_name(codes[0])
        if name == OTHER or len(codes) == 1:
            last[STRANGERS if name == OTHER else ALONE] += codes
        else:
            several[name] = codes
    return [(f"{name}: {len(codes)}", codes) for name, codes in (several | last).items() if codes]


def search_words(code: str, *names: str) -> str:
    """Returns what the filter of a page finds a language by: code, names and script."""
    return " ".join(dict.fromkeys((code, *names, script_name(code)))).casefold()


def worst_and_rest(values: Mapping[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the `NUM_WORST` languages of the least values, and the others by script.

    Args:
        values: By code.
    """
    ordered = sorted(values, key=lambda code: values[code])
    rest = {code: values[code] for code in ordered[NUM_WORST:]}
    return tuple(ordered[:NUM_WORST]), group_by_script(rest)


def table_rows(values: Mapping[str, float], show_all: bool = False) -> list[tuple[str, ...]]:
    """Returns the languages of each row of a table.

    There is a row for each language; of many, for English, for each of the worst, and for each
    script of the others.

    Args:
        values: By code.
        show_all: One each, however many there are.
    """
    if show_all or len(values) <= MAX_ROWS:
        return [(code,) for code in values]
    worst, rest = worst_and_rest({code: v for code, v in values.items() if code != ENGLISH})
    return [(ENGLISH,)] * (ENGLISH in values) + [(code,) for code in worst] + rest


def group_name(codes: Sequence[str]) -> str:
    """Returns the name of a language alone, or the script of several and their number."""
    if len(codes) == 1:
        return language_name(codes[0])
    return f"{script_name(codes[0])}: {len(codes)}"


def listed(texts: Iterable[str], separator: str = ", ") -> str:
    """Joins texts; of more than `MAX_ROWS` the first, and how many there are besides."""
    every = list(texts)
    if len(every) <= MAX_ROWS:
        return separator.join(every)
    return f"{separator.join(every[:NUM_WORST])} and {len(every) - NUM_WORST} more"
