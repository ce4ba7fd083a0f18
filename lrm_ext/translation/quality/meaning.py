"""Check `meaning`: is this a translation of that text, or of another one?

Words of the text that the lexicon knows are looked for in the translation. One that is missing says
little (there are synonyms); many that are missing, and none found, say that rows were mixed up.
"""

from __future__ import annotations

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.quality.lexicon import english_key, get_lexicon
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

# Every text about a picture has these; they do not tell one from another. Words of places ("top",
# "left") are left out as well: languages say those in ways that names do not teach.
_SAY_NOTHING = frozenset(
    "a an the and or not no yes do doe did is are was were be been has have had can could "
    "will would may might should must there here this that these those it its he she they you "
    "your we our i my what which who where when how why any some all one two three see seen "
    "show shown look visible appear contain feature depict picture image photo photograph "
    "scene view please describe short brief sentence word answer question top bottom left "
    "right upper lower up down in on at of to from with by for as into over under out off so "
    "than then too very also only just more most other such like about".split()
)


def check_meaning(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """Missing words, as a share of all known ones and one more; None if no word is known.

    The one more keeps one or two missing words from looking as bad as five.
    """
    if pair.source_lang != "en":
        return None
    lexicon = get_lexicon(pair.target_lang, get_language(pair.target_lang).spaced)
    if lexicon is None:
        return None
    found = pair.known_words
    if found is None:
        keys = set(map(english_key, pair.source_words)) - _SAY_NOTHING
        found = pair.known_words = lexicon.look_up(keys, pair.target_words)
    if not found:
        return None
    if all(found.values()):
        return Measured(0.0, "")
    missing = sorted([key for key, is_there in found.items() if not is_there])
    listed = ", ".join(missing[:8])
    return Measured(
        len(missing) / (len(found) + 1), f"{len(missing)} of {len(found)} words not there: {listed}"
    )
