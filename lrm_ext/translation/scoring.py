"""`lrm corpus score`: checks and second opinions on texts that are in a corpus already.

Input: a corpus with texts in a language, whoever made them. Output: the same texts with more
figures and, where a limit is passed, another status. It goes part by part and may be killed like a
translation (`parts.py`); the texts themselves are not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH, TEXT_SCHEMA, Corpus, CorpusRow, Text
from lrm_ext.translation.frame import UNIT, frame
from lrm_ext.translation.parts import PartStore, locked, read_description, text_dir
from lrm_ext.translation.quality import QUALITY_VERSION, Checker, get_thresholds
from lrm_ext.translation.quality.scorers import SCORERS, Scorer

CHECKS = "checks"
NAMES = (CHECKS, *SCORERS)
# Of fewer words no scorer can say much; a row without longer ones is judged as a whole.
_MIN_WORDS = 4
_NO_TEXT = dict.fromkeys(TEXT_SCHEMA.names)


@dataclass(frozen=True)
class ScoreJob:
    """What to look at, and how.

    Attributes:
        corpus: Folder of the corpus.
        lang: Code of the language.
        names: Some of `NAMES`.
        options: Options of scorers, by scorer.
        limits: The largest figure that passes, by check or scorer; a scorer without one only adds
            its figure.
        cache: The file of answers of a back-translation.
    """

    corpus: Path
    lang: str
    names: tuple[str, ...]
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    cache: Path = Path("translation-cache.sqlite")


class _Tools(NamedTuple):
    checker: Checker | None
    scorers: dict[str, Scorer]


def score_corpus(
    job: ScoreJob, progress: Callable[[int, int], None] = lambda done, total: None
) -> Counter[str]:
    """Add figures to all texts in a language.

    Args:
        job: What to do.
        progress: Called with the numbers of parts done and in all.

    Returns:
        Rows by status and by reason.

    Raises:
        ConfigError: A name, option or limit is unknown, or a scorer needs what is not installed.
        DataError: The corpus lacks the language or is damaged, or another run is at work on it.
    """
    corpus = Corpus.open(job.corpus)
    if job.lang == ENGLISH or job.lang not in corpus.languages:
        there = ", ".join(corpus.languages[1:]) or "none"
        raise ConfigError(f"{job.corpus}: no texts in {job.lang!r} to score; it has: {there}.")
    tools = _tools(job)
    lock = job.corpus / "text" / f".{job.lang}.lock"
    try:
        with locked(lock, f"texts in {job.lang!r}"):
            store = PartStore(corpus, job.lang, _describe(job, tools))
            if not store.is_complete():
                store.begin()
                missing = store.missing()
                for done, number in enumerate(missing, start=store.num_parts - len(missing) + 1):
                    store.write(number, _score_part(job, store, tools, number))
                    progress(done, store.num_parts)
                return store.commit()
            description = read_description(text_dir(job.corpus, job.lang)) or {}
            return Counter(description["counts"])
    finally:
        for scorer in tools.scorers.values():
            scorer.close()


def _tools(job: ScoreJob) -> _Tools:
    unknown = [name for name in job.names if name not in NAMES]
    if unknown or not job.names:
        raise ConfigError(
            f"--by {', '.join(unknown) or 'nothing'}: expected some of {', '.join(NAMES)}."
        )
    scorers = [name for name in job.names if name != CHECKS]
    of_checks = {name: limit for name, limit in job.limits.items() if name not in scorers}
    if of_checks and CHECKS not in job.names:
        raise ConfigError(
            f"--limit {', '.join(of_checks)}: expected some of {', '.join(scorers)}; limits of "
            f"checks need --by {CHECKS}."
        )
    checker = None
    if CHECKS in job.names:
        thresholds = get_thresholds(job.lang).with_limits(of_checks)
        checker = Checker(ENGLISH, job.lang, thresholds)
    made = {name: SCORERS[name](job.options.get(name, {}), job.lang, job.cache) for name in scorers}
    return _Tools(checker, made)


def _describe(job: ScoreJob, tools: _Tools) -> dict[str, Any]:
    """How the texts were made, as before, and what they were judged by."""
    before = read_description(text_dir(job.corpus, job.lang)) or {"target": job.lang, "engines": []}
    scores = dict(before.get("scores", {}))
    if tools.checker is not None:
        limits = dict(tools.checker.thresholds.limits)
        scores[CHECKS] = {"version": QUALITY_VERSION, "limits": limits}
    for name, scorer in tools.scorers.items():
        scores[name] = {**scorer.identity, "limit": job.limits.get(name)}
    return {**{k: v for k, v in before.items() if k != "counts"}, "scores": scores}


def _score_part(job: ScoreJob, store: PartStore, tools: _Tools, number: int) -> pa.RecordBatch:
    rows = [(row, store.corpus.text(job.lang, i)) for i, row in store.rows(number)]
    there = [i for i, (_, text) in enumerate(rows) if text is not None]
    texts = {i: text for i in there if (text := rows[i][1]) is not None}
    if tools.checker is not None:
        texts = {i: _checked(rows[i][0], text, tools.checker) for i, text in texts.items()}
    for name, scorer in tools.scorers.items():
        # what has no translation cannot be judged
        judged = {i: pairs_of(rows[i][0], t) for i, t in texts.items() if _is_translated(t)}
        pairs = list(dict.fromkeys(pair for found in judged.values() for pair in found))
        figures = dict(zip(pairs, scorer.score(pairs), strict=True)) if pairs else {}
        for i, found in judged.items():
            known = [figure for pair in found if (figure := figures[pair]) is not None]
            if known:
                texts[i] = _scored(texts[i], name, max(known), job.limits.get(name))
    records = [texts[i].to_arrow() if i in texts else _NO_TEXT for i in range(len(rows))]
    return pa.RecordBatch.from_pylist(records, schema=TEXT_SCHEMA)


def pairs_of(row: CorpusRow, text: Text) -> list[tuple[str, str]]:
    """Lines of a row and their translations, for a scorer; all as one if all are short."""
    longer: list[tuple[str, str]] = []
    every: list[tuple[str, str]] = []
    for ours, theirs in zip(row.turns, text.turns, strict=False):
        lines, others = ours.text.splitlines(), theirs.text.splitlines()
        if len(lines) != len(others):
            lines, others = [ours.text], [theirs.text]
        for line, other in zip(lines, others, strict=True):
            if not other.strip() or not any(piece.kind == UNIT for piece in frame(line)):
                continue
            every.append((line, other))
            if len(line.split()) >= _MIN_WORDS:
                longer.append((line, other))
    if longer or not every:
        return longer
    sources, targets = zip(*every, strict=True)
    return [("\n".join(sources), "\n".join(targets))]


def _is_translated(text: Text) -> bool:
    return text.status != "rejected" or text.quality is not None


def _checked(row: CorpusRow, text: Text, checker: Checker) -> Text:
    """Judge a text anew; one that could not be translated stays rejected."""
    if not _is_translated(text):
        return text
    verdict = checker.check_turns(row.turns, text.turns)
    # figures of scorers stay
    quality = {k: v for k, v in (text.quality or {}).items() if k in SCORERS}
    reason = "; ".join(verdict.reasons) or None
    return replace(
        text, status=verdict.status, reason=reason, quality={**verdict.figures, **quality}
    )


def _scored(text: Text, name: str, figure: float, limit: float | None) -> Text:
    """Keep a figure, and take back what an earlier limit of the same scorer said."""
    quality = {**(text.quality or {}), name: round(figure, 4)}
    if limit is None:
        return replace(text, quality=quality)
    reasons = _without(text.reason, name)
    status = "ok" if text.status == "suspect" and not reasons else text.status
    if figure > limit:
        reasons.append(f"{name}: {figure:.2f}, the limit is {limit:g}")
        status = "suspect" if status == "ok" else status
    return replace(text, status=status, reason="; ".join(reasons) or None, quality=quality)


def _without(reason: str | None, name: str) -> list[str]:
    parts: Sequence[str] = reason.split("; ") if reason else ()
    return [part for part in parts if not part.startswith(f"{name}: ")]
