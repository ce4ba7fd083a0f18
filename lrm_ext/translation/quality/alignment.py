"""Learns which words translate each other from pairs of texts: IBM model 1, both directions.

Input: pairs of bags of words. Output: for each word its likely translations. Brown et al. (1993),
"The Mathematics of Statistical Machine Translation".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

NUM_ROUNDS = 6
_NOTHING = ""  # a word may come from nothing

Bag = Sequence[str]
Table = dict[str, dict[str, float]]


def translation_table(pairs: Sequence[tuple[Bag, Bag]], num_rounds: int = NUM_ROUNDS) -> Table:
    """Estimate how probable each word of the second side is, given one of the first.

    Args:
        pairs: Bags of words that mean about the same.
        num_rounds: Rounds of expectation maximisation.

    Returns:
        For each word of the first side, probabilities of words of the second.
    """
    table: Table = defaultdict(dict)
    for first, second in pairs:
        for word in (_NOTHING, *first):
            table[word].update(dict.fromkeys(second, 1.0))
    for _ in range(num_rounds):
        counts: Table = defaultdict(lambda: defaultdict(float))
        for first, second in pairs:
            for other in second:
                shares = {word: table[word][other] for word in (_NOTHING, *first)}
                total = sum(shares.values())
                for word, share in shares.items():
                    counts[word][other] += share / total
        table = {}
        for word, found in counts.items():
            total = sum(found.values())
            table[word] = {other: count / total for other, count in found.items()}
    return table


def learn_lexicon(
    pairs: Sequence[tuple[Bag, Bag]],
    min_score: float = 0.03,
    max_translations: int = 4,
    stop: Iterable[str] = (),
) -> dict[str, list[str]]:
    """Find the words that translate each other.

    Args:
        pairs: Bags of words that mean about the same, English first.
        min_score: Smallest product of the probabilities of both directions.
        max_translations: So many are kept for a word, the best first.
        stop: English words to leave out.

    Returns:
        English words and their translations.
    """
    forth = translation_table(pairs)
    back = translation_table([(second, first) for first, second in pairs])
    left_out = {_NOTHING, *stop}
    lexicon: dict[str, list[str]] = {}
    for word in sorted(set(forth) - left_out):
        scores = Counter(
            {
                other: share * back.get(other, {}).get(word, 0.0)
                for other, share in forth[word].items()
            }
        )
        # equal scores in the order of the alphabet, so that building again gives the same
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:max_translations]
        kept = [other for other, score in best if score >= min_score]
        if kept:
            lexicon[word] = kept
    return lexicon
