"""English contractions that the VQA challenge restores; see `m4c_evaluator`."""

from __future__ import annotations

from typing import Final

_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't "
    "not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd "
    "someone'll someone's something'd something'll that's there'd there're there's they'd they'll "
    "they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll "
    "you'd've"
)


def _without_one(word: str) -> tuple[str, str]:
    """The word without its first, and without its last apostrophe."""
    first, last = word.index("'"), word.rindex("'")
    return word[:first] + word[first + 1 :], word[:last] + word[last + 1 :]


CONTRACTIONS: Final[dict[str, str]] = {
    **{word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()},
    **{spelling: word for word in _TWO_APOSTROPHES.split() for spelling in _without_one(word)},
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}
"""Spelling with one apostrophe missing -> the contraction."""
