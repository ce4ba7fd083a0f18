"""Check `meaning`: is this a translation of that text, or of another one?

Words of the text that the lexicon knows are looked for in the translation. One that is missing says
little (there are synonyms); many that are missing, and none found, say that rows were mixed up.
"""

from __future__ import annotations

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.quality.lexicon import get_lexicon
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured


def check_meaning(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """Missing words, as a share of all known ones and one more; None if no word is known.

    The one more keeps one or two missing words from looking as bad as five.
    """
    if pair.source_lang != "en":
        return None
    lexicon = get_lexicon(pair.target_lang, get_language(pair.target_lang).spaced)
    if lexicon is None:
        return None
    found = lexicon.look_up(pair.source_words, pair.target_words)
    if not found:
        return None
    missing = sorted(key for key, is_there in found.items() if not is_there)
    listed = ", ".join(missing[:8])
    return Measured(
        len(missing) / (len(found) + 1), f"{len(missing)} of {len(found)} words not there: {listed}"
    )
