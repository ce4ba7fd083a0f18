"""Gets units translated: each once, protected, from the cache or by the first engine that can.

Input: units of English. Output: for each, its translation or the reason why there is none. An
engine is tried in several ways (numbers in sight, everything masked in one style after another, cut
at the protected parts), then the next engine of the chain is. What is judged a row at a time is
not here (`segment.py`).

A glossary has words that a user wants translated in one way: a TOML file with one table a language,
English on the left:

    [hr]
    "fire hydrant" = "hidrant"

No engine is asked for a text that is a term; the terms that occur in other texts are a hint for
engines that can read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.cache import Cache, CachedAnswer, CachedEngine
from lrm_ext.translate.engines.base import Engine, Segment, Usage
from lrm_ext.translate.protect import Masked, damaged_parts, mask, restore, split
from lrm_ext.translate.segment import Translated, Unit, sentences

# Not empty, nor blank.
_Word = Annotated[str, msgspec.Meta(pattern=r"\S")]


class Glossary:
    """The terms of one language.

    Args:
        terms: English and translation.
    """

    def __init__(self, terms: dict[str, str]) -> None:
        self.terms = terms
        self._lower = {english.lower(): text for english, text in terms.items()}

    @classmethod
    def load(cls, path: str | Path | None, target: str) -> Glossary:
        """Read the terms of a language; none if there is no file.

        Raises:
            ConfigError: The file is missing, not TOML, or holds something other than strings.
        """
        if path is None:
            return cls({})
        return cls(load_toml(path, dict[str, dict[_Word, _Word]]).get(target, {}))

    def exact(self, text: str) -> str | None:
        """The translation of a text that is a term; a first capital and a full stop are kept."""
        body = text.rstrip(".")
        found = self.terms.get(body) or self._lower.get(body.lower())
        if found is None:
            return None
        if body[:1].isupper():
            found = found[:1].upper() + found[1:]
        return found + text[len(body) :]

    def terms_in(self, text: str) -> tuple[tuple[str, str], ...]:
        """The terms that occur in a text as whole words, in the order of their first place."""
        if self._pattern is None:
            return ()
        names = dict.fromkeys(match[0].lower() for match in self._pattern.finditer(text))
        return tuple((name, self._lower[name]) for name in names)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.terms:
            return None
        longest_first = sorted(self._lower, key=len, reverse=True)
        return re.compile(
            r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE
        )


# The reason of what failed for reasons that may pass.
UNANSWERED = "unanswered"

_QUESTION_MARK = re.compile(r"[?？;;؟]")
_END = (".", "。")
_SENTENCE_ENDS = (*_END, "!", "?", "…", "！", "？", ":", "：", ";", "；", '"', "”", "“", "»", ")")
_UNICODE = str.maketrans({"ş": "ș", "Ş": "Ș", "ţ": "ț", "Ţ": "Ț"})  # cedilla to comma below


class _Plan(NamedTuple):
    """One way to have a unit translated: parts that are copied or sent, put together afterwards."""

    parts: tuple[str | Masked, ...]
    context: str = ""
    question: str = ""


class Translator:
    """Translates units with a chain of engines.

    Args:
        engines: They are tried in this order.
        cache: Where answers are kept.
        target: Code of the language to translate into.
        glossary: Terms of that language.
        is_good: Whether a text has a good translation; if not, the next engine is tried. The last
            one's answer stays.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        cache: Cache,
        target: str,
        glossary: Glossary | None = None,
        is_good: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.target = target
        self.engines = tuple(engines)
        self.counts: Counter[str] = Counter()
        self.usage = Usage()
        self._glossary = glossary or Glossary({})
        self._is_good = is_good
        self._is_spaced = get_language(target).spaced
        self._cache = cache
        self._asked = {id(e): CachedEngine(e, cache, ENGLISH, target) for e in self.engines}

    def translate(self, units: Iterable[Unit]) -> dict[Unit, Translated]:
        """Translate units, each once however often it occurs.

        Raises:
            EngineError: An engine cannot go on; what it answered is in the cache.
            DataError: The cache cannot be read or written.
        """
        done: dict[Unit, Translated] = {}
        for unit in units:
            if unit not in done and (text := self._glossary.exact(unit.text)) is not None:
                done[unit] = Translated(text, "glossary")
                self.counts["glossary"] += 1
            else:
                done.setdefault(unit, Translated(None))
        pending = [unit for unit, result in done.items() if result.text is None]
        self.counts["units"] += len(done)
        spare: dict[Unit, Translated] = {}
        for engine in self.engines:
            is_trusted = engine.is_table or engine is self.engines[-1]
            is_good = None if is_trusted else self._is_good
            for unit, result in self._by_engine(engine, pending).items():
                if result.text is None:
                    done[unit] = _join(done[unit], result)
                elif is_good and not is_good(unit.text, result.text):
                    spare.setdefault(unit, result)
                else:
                    done[unit] = result
            pending = [unit for unit in pending if done[unit].text is None]
        # a doubtful translation is better than none: it is judged, and counted, with its row
        done.update({unit: spare[unit] for unit in pending if unit in spare})
        self.counts["failed"] += sum(result.text is None for result in done.values())
        return done

    @property
    def rows_ahead(self) -> int:
        """Rows of the corpus to ask about before the first of them is written."""
        # another package's engine need not have the attribute
        return max((getattr(engine, "rows_ahead", 0) for engine in self.engines), default=0)

    def close(self) -> None:
        """Close the engines and the cache."""
        for engine in self.engines:
            engine.close()
        self._cache.close()

    def _by_engine(self, engine: Engine, units: Sequence[Unit]) -> dict[Unit, Translated]:
        """Try one engine in all its ways."""
        results: dict[Unit, Translated] = {}
        name = f"{engine.name} {engine.version}".strip()
        pending = list(units)
        for way, plan_of in self._ways(engine):
            plans = {unit: plan for unit in pending if (plan := plan_of(unit)) is not None}
            segments = dict.fromkeys(
                self._segment(engine, part, plan)
                for plan in plans.values()
                for part in plan.parts
                if isinstance(part, Masked)
            )
            answers, usage = self._asked[id(engine)].translate(list(segments), self.counts)
            self.usage += usage
            for unit, plan in plans.items():
                text, fault = self._finish(unit, plan, answers, engine)
                results[unit] = Translated(text, name, fault)
                if text is not None:
                    self.counts[f"{engine.name}: {way}"] += 1
            # an engine that refuses a text refuses it masked, too
            given_up = ("engine", UNANSWERED)
            pending = [
                unit
                for unit in pending
                if (found := results.get(unit)) is None
                or (found.text is None and not found.reason.startswith(given_up))
            ]
        return results

    def _ways(self, engine: Engine) -> Iterator[tuple[str, Callable[[Unit], _Plan | None]]]:
        if engine.is_table:
            yield "table", lambda unit: _Plan((Masked(unit.text, (), "visible"),))
            return
        context = engine.context in ("native", "question")
        if engine.context == "joined":
            yield "with its question", _joined_plan
        for style in ("visible", *engine.mask_styles):

            def masked(unit: Unit, style: str = style) -> _Plan | None:
                pieces = sentences(unit.text) if engine.is_sentence_level else [unit.text]
                return self._masked_plan(unit, pieces, style, context)

            yield style, masked
        yield "cut", lambda unit: _cut_plan(unit.text)

    def _masked_plan(
        self, unit: Unit, pieces: Sequence[str], style: str, context: bool
    ) -> _Plan | None:
        parts: list[str | Masked] = []
        for piece in pieces:
            body = piece.rstrip()
            masked = mask(body, style)
            if masked is None:
                return None
            parts.append(masked)
            # Chinese puts no blank between sentences
            parts.append(piece[len(body) :] if self._is_spaced else "")
        if style != "visible" and not any(isinstance(p, Masked) and p.parts for p in parts):
            return None  # the same as in sight
        return _Plan(tuple(parts), unit.context if context else "")

    def _segment(self, engine: Engine, part: Masked, plan: _Plan) -> Segment:
        terms = self._glossary.terms_in(part.text) if engine.context == "native" else ()
        return Segment(part.text, plan.context, terms)

    def _finish(
        self, unit: Unit, plan: _Plan, answers: dict[Segment, CachedAnswer], engine: Engine
    ) -> tuple[str | None, str]:
        """Put a plan's parts together and check what must have survived."""
        texts: list[str] = []
        for part in plan.parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            answer = answers.get(self._segment(engine, part, plan))
            if answer is None or not (answer.text or "").strip():
                error = (answer.error if answer else None) or "no answer"
                word = "engine" if answer and answer.is_final else UNANSWERED
                return None, f"{word}: {engine.name}: {error}"
            if engine.is_table:
                return answer.text, ""
            text = restore(part, _tidy(part.text, str(answer.text)))
            if text is None:
                return None, "protected: a placeholder was lost, doubled or invented"
            texts.append(text)
        result = "".join(texts).translate(_UNICODE)
        if plan.question:
            tail = _answer_part(plan.question, result)
            if tail is None:
                return None, "context: question and answer cannot be told apart"
            result = _tidy(unit.text, tail)
        if faults := damaged_parts(unit.text, result):
            return None, "protected: " + ", ".join(faults)
        return result, ""


def _joined_plan(unit: Unit) -> _Plan | None:
    """Question and answer as one text, for an engine that knows no context."""
    if not unit.context.rstrip().endswith("?") or unit.context.count("?") != 1:
        return None
    end = "" if unit.text.endswith(_SENTENCE_ENDS) else "."
    masked = mask(f"{unit.context.rstrip()} {unit.text}{end}")
    return None if masked is None else _Plan((masked,), question=unit.context)


def _answer_part(question: str, text: str) -> str | None:
    """What follows the question; None unless that is unambiguous."""
    head, *tails = _QUESTION_MARK.split(text)
    if len(tails) != 1 or not head.strip() or not tails[0].strip(" ."):
        return None
    tail = tails[0].strip()
    # an answer of a few words does not become a sentence
    return tail if len(tail) < max(40, len(question)) else None


def _cut_plan(text: str) -> _Plan | None:
    pieces = split(text)
    if not any(is_protected for _, is_protected in pieces):
        return None
    return _Plan(
        tuple(
            part if is_protected else Masked(part, (), "visible") for part, is_protected in pieces
        )
    )


def _tidy(source: str, target: str) -> str:
    """Take off blanks and a full stop that the source does not have."""
    target = target.strip()
    if target.endswith(_END) and not target.endswith("..") and not source.endswith(_SENTENCE_ENDS):
        return target[:-1].rstrip() or target
    return target


def _join(before: Translated, now: Translated) -> Translated:
    """Keep the reasons of all engines that failed; the first word counts."""
    reason = f"{before.reason}; {now.reason}" if before.reason else now.reason
    return Translated(None, now.engine, reason)
