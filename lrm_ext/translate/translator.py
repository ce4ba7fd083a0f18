"""Translates units, each once, from the cache or with the first engine of a chain that succeeds.

Every unit receives a translation or a reason why there is none. Each engine is tried in several
ways (with visible numbers, with everything masked in one style after another, split at the
protected parts) before the next engine is. Whole rows are checked in `segment.py`.

A glossary fixes the translation of words: a TOML file with one table per language and English on
the left:

    [hr]
    "fire hydrant" = "hidrant"

No engine is asked for a text that is a term; engines that can read hints receive the terms that
occur in other texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from llava.files import load_toml
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.cache import Cache, CachedAnswer, CachedEngine
from lrm_ext.translate.engines.base import TextSegment, TranslationEngine, Usage
from lrm_ext.translate.protect import Masked, damaged_parts, mask, restore, split
from lrm_ext.translate.segment import Translated, Unit, sentences

# Neither empty nor blank.
_Word = Annotated[str, msgspec.Meta(pattern=r"\S")]


class Glossary:
    """The terms of one language.

    Args:
        terms: Translations by English.
    """

    def __init__(self, terms: dict[str, str]) -> None:
        self.terms = terms
        self._lower = {english.lower(): text for english, text in terms.items()}

    @classmethod
    def load(cls, path: str | Path | None, target: str) -> Glossary:
        """Reads the terms of a language; no terms if `path` is None.

        Raises:
            ConfigError: The file is missing, is not TOML, or is not a table of texts per language.
        """
        tables = {} if path is None else load_toml(path, dict[str, dict[_Word, _Word]])
        return cls(tables.get(target, {}))

    def exact(self, text: str) -> str | None:
        """Returns the translation of a text that is a term; keeps a capital and a full stop."""
        body = text.rstrip(".")
        found = self.terms.get(body) or self._lower.get(body.lower())
        if found is None:
            return None
        if body[:1].isupper():
            found = found[:1].upper() + found[1:]
        return found + text[len(body) :]

    def terms_in(self, text: str) -> tuple[tuple[str, str], ...]:
        """Returns the terms that occur in a text as whole words, in order of first occurrence."""
        if not self.terms:
            return ()
        names = dict.fromkeys(match[0].lower() for match in self._pattern.finditer(text))
        return tuple((name, self._lower[name]) for name in names)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._lower, key=len, reverse=True)
        return re.compile(
            r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE
        )


# The keyword of failures that may not recur.
UNANSWERED = "unanswered"

# Ways to translate a unit, beside the styles of placeholders.
_TABLE, _WITH_QUESTION, _CUT = "table", "with its question", "cut"
_QUESTION_MARK = re.compile(r"[?？;;؟]")
_END = (".", "。")
_SENTENCE_ENDS = (*_END, "!", "?", "…", "！", "？", ":", "：", ";", "；", '"', "”", "“", "»", ")")
_UNICODE = str.maketrans({"ş": "ș", "Ş": "Ș", "ţ": "ț", "Ţ": "Ț"})  # cedilla to comma below


class _Plan(NamedTuple):
    """One way to translate a unit: parts that are copied or translated and then joined."""

    parts: tuple[str | Masked, ...]
    context: str = ""
    question: str = ""


class Translator:
    """Translates units with a chain of engines.

    Args:
        engines: Engines in the order in which they are tried.
        cache: The cache of their answers.
        target: Code of the language to translate into.
        glossary: Terms of that language.
        is_good: Returns whether a text has a good translation; if not, the next engine is tried.
            The answer of the last engine is always accepted.
    """

    def __init__(
        self,
        engines: Sequence[TranslationEngine],
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
        """Translates units, each once however often it occurs.

        Raises:
            EngineError: An engine cannot continue; its answers so far are in the cache.
            DataError: The cache cannot be read or written.
        """
        done = {
            unit: Translated(self._glossary.exact(unit.text), "glossary")
            for unit in dict.fromkeys(units)
        }
        pending = [unit for unit, result in done.items() if result.text is None]
        self.counts.update({"units": len(done), "glossary": len(done) - len(pending)})
        spare: dict[Unit, Translated] = {}
        for engine in self.engines:
            is_trusted = engine.is_table or engine is self.engines[-1]
            is_good = None if is_trusted else self._is_good
            for unit, result in self._by_engine(engine, pending).items():
                if result.text is None:  # the reasons of all engines; the first keyword counts
                    reasons = filter(None, (done[unit].reason, result.reason))
                    done[unit] = Translated(None, result.engine, "; ".join(reasons))
                elif is_good and not is_good(unit.text, result.text):
                    spare.setdefault(unit, result)
                else:
                    done[unit] = result
            pending = [unit for unit in pending if done[unit].text is None]
        # a doubtful translation is better than none; it is checked and counted with its row
        done.update({unit: spare[unit] for unit in pending if unit in spare})
        self.counts["failed"] += sum(result.text is None for result in done.values())
        return done

    @property
    def rows_ahead(self) -> int:
        """The number of rows to ask for before the first of them is written."""
        # an engine of another package may lack the attribute
        return max((getattr(engine, "rows_ahead", 0) for engine in self.engines), default=0)

    def close(self) -> None:
        """Closes the engines and the cache."""
        for engine in self.engines:
            engine.close()
        self._cache.close()

    def _by_engine(
        self, engine: TranslationEngine, units: Sequence[Unit]
    ) -> dict[Unit, Translated]:
        """Tries one engine in all ways."""
        results: dict[Unit, Translated] = {}
        name = f"{engine.name} {engine.version}".strip()
        with_question = [_WITH_QUESTION] if engine.context == "joined" else []
        ways = [*with_question, "visible", *engine.mask_styles, _CUT]
        pending = list(units)
        for way in [_TABLE] if engine.is_table else ways:
            planned = ((unit, self._plan(engine, way, unit)) for unit in pending)
            plans = {unit: plan for unit, plan in planned if plan is not None}
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
            # an engine that refuses a text refuses the masked text, too
            given_up = ("engine", UNANSWERED)
            pending = [
                unit
                for unit in pending
                if (found := results.get(unit)) is None
                or (found.text is None and not found.reason.startswith(given_up))
            ]
        return results

    def _plan(self, engine: TranslationEngine, way: str, unit: Unit) -> _Plan | None:
        """Returns how a unit is translated in one way; None if that way is not for it."""
        if way == _TABLE:
            return _Plan((Masked(unit.text, (), "visible"),))
        if way == _WITH_QUESTION:
            return _joined_plan(unit)
        if way == _CUT:
            return _cut_plan(unit.text)
        parts: list[str | Masked] = []
        for piece in sentences(unit.text) if engine.is_sentence_level else [unit.text]:
            body = piece.rstrip()
            masked = mask(body, way)
            if masked is None:
                return None
            # Chinese has no blank between sentences
            parts += masked, piece[len(body) :] if self._is_spaced else ""
        if way != "visible" and not any(isinstance(p, Masked) and p.parts for p in parts):
            return None  # the same as "visible"
        return _Plan(tuple(parts), unit.context if engine.context in ("native", "question") else "")

    def _segment(self, engine: TranslationEngine, part: Masked, plan: _Plan) -> TextSegment:
        terms = self._glossary.terms_in(part.text) if engine.context == "native" else ()
        return TextSegment(part.text, plan.context, terms)

    def _finish(
        self,
        unit: Unit,
        plan: _Plan,
        answers: dict[TextSegment, CachedAnswer],
        engine: TranslationEngine,
    ) -> tuple[str | None, str]:
        """Joins the parts of a plan and checks that protected parts are intact."""
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
    """Returns a plan of question and answer as one text, for engines without context."""
    if not unit.context.rstrip().endswith("?") or unit.context.count("?") != 1:
        return None
    end = "" if unit.text.endswith(_SENTENCE_ENDS) else "."
    masked = mask(f"{unit.context.rstrip()} {unit.text}{end}")
    return None if masked is None else _Plan((masked,), question=unit.context)


def _answer_part(question: str, text: str) -> str | None:
    """Returns the text after the question; None if it is ambiguous."""
    head, *tails = _QUESTION_MARK.split(text)
    if len(tails) != 1 or not head.strip() or not tails[0].strip(" ."):
        return None
    tail = tails[0].strip()
    # an answer of a few words does not become a long sentence
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
    """Removes blanks and a full stop that the source does not have."""
    target = target.strip()
    if target.endswith(_END) and not target.endswith("..") and not source.endswith(_SENTENCE_ENDS):
        return target[:-1].rstrip() or target
    return target
