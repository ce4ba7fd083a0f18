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

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.cache import Cache, CachedAnswer, Keys
from lrm_ext.translate.engines.base import Engine, EngineError, Segment, Usage
from lrm_ext.translate.protect import Masked, damaged_parts, mask, restore, split
from lrm_ext.translate.segment import Translated, Unit, sentences


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
        data = load_toml(path)
        for lang, table in data.items():
            if not isinstance(table, dict) or not all(
                isinstance(text, str) and text.strip() and term.strip()
                for term, text in table.items()
            ):
                raise ConfigError(
                    f'{path}: [{lang}] must hold lines of the form "english" = "translation".'
                )
        return cls(dict(data.get(target, {})))

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


log = logging.getLogger(__name__)

# The reason of what failed for reasons that may pass.
UNANSWERED = "unanswered"

# Says what is wrong with a translation, or None.
Judge = Callable[[str, str], str | None]

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
        judge: Decides whether the next engine is tried; the last one's answer stays.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        cache: Cache,
        target: str,
        glossary: Glossary | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.target = target
        self.engines = tuple(engines)
        self.counts: Counter[str] = Counter()
        self.usage = Usage()
        self._cache = cache
        self._glossary = glossary or Glossary({})
        self._judge = judge
        self._is_spaced = get_language(target).spaced
        self._keys = {id(engine): Keys(engine, ENGLISH, target) for engine in self.engines}

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
            is_last = engine is self.engines[-1]
            for unit, result in self._by_engine(engine, pending).items():
                fault = None
                if result.text is not None and not is_last and not engine.is_table and self._judge:
                    fault = self._judge(unit.text, result.text)
                if fault is None:
                    done[unit] = result if result.text is not None else _join(done[unit], result)
                else:
                    spare.setdefault(unit, result)
            pending = [unit for unit in pending if done[unit].text is None]
        # a doubtful translation is better than none: it is judged, and counted, with its row
        done.update({unit: spare[unit] for unit in pending if unit in spare})
        self.counts["failed"] += sum(result.text is None for result in done.values())
        return done

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
            answers = self._ask(engine, plans.values())
            for unit, plan in plans.items():
                text, fault = self._finish(unit, plan, answers, engine)
                results[unit] = Translated(text, name, fault)
                if text is not None:
                    self.counts[f"{engine.name}: {way}"] += 1
            # an engine that refuses a text refuses it masked, too
            pending = [
                unit
                for unit in pending
                if unit not in results
                or (
                    results[unit].text is None
                    and not results[unit].reason.startswith(("engine", UNANSWERED))
                )
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

    def _ask(self, engine: Engine, plans: Iterable[_Plan]) -> dict[Segment, CachedAnswer]:
        """Look segments up, and have the engine translate the rest."""
        segments = list(
            dict.fromkeys(
                self._segment(engine, part, plan)
                for plan in plans
                for part in plan.parts
                if isinstance(part, Masked)
            )
        )
        answers: dict[Segment, CachedAnswer] = {}
        keys = {segment: self._keys[id(engine)].key(segment) for segment in segments}
        if not engine.is_table:
            found = self._cache.get_many(list(keys.values()))
            answers = {segment: found[key] for segment, key in keys.items() if key in found}
            self.counts[f"{engine.name}: from the cache"] += len(answers)
        missing = [segment for segment in segments if segment not in answers]
        if missing:
            self._ask_for(missing, engine, keys, answers)
        return answers

    def _ask_for(
        self,
        missing: Sequence[Segment],
        engine: Engine,
        keys: dict[Segment, bytes],
        answers: dict[Segment, CachedAnswer],
    ) -> None:
        """Have the engine translate segments; what it answers goes into the cache at once."""
        for reply in engine.translate(missing):
            fresh: dict[bytes, CachedAnswer] = {}
            for outcome in reply.outcomes:
                if not 0 <= outcome.index < len(missing):
                    raise EngineError(
                        f"engine {engine.name!r} answered segment {outcome.index} of "
                        f"{len(missing)}; its code is at fault."
                    )
                segment = missing[outcome.index]
                answers[segment] = CachedAnswer(outcome.text, outcome.error, outcome.is_final)
                if outcome.is_final:
                    fresh[keys[segment]] = answers[segment]
            if not engine.is_table:
                num_twice = self._cache.put(fresh, engine, self.target, reply.usage)
                if num_twice:
                    self.counts[f"{engine.name}: asked by another run, too"] += num_twice
            self.usage += reply.usage
            self.counts[f"{engine.name}: asked"] += len(reply.outcomes)

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
    if all(not is_protected for _, is_protected in pieces):
        return None
    return _Plan(
        tuple(
            piece if is_protected else Masked(piece, (), "visible")
            for piece, is_protected in pieces
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
