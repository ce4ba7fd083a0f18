"""Has a model judge open answers by a rubric, and says how far judges agree.

In: results of a run, and rubrics (`judges/*.toml`). Out: verdicts in a mode of the judge's own,
`judge:RUBRIC:MODEL`, which are stored, counted and compared as all others are (`results.py`). A
reply is read strictly: one that is not in the form asked for is asked for once more, and then
decides nothing. Requests, retries, the budget and the cache are those of the translation engine
`openai`: a reply is on disk when it is known, and paid once.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from jinja2 import Environment, StrictUndefined, UndefinedError

from llava.chat_service import ChatReply
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import ConfigError, DataError
from llava.files import load_toml, sha256_of
from llava.progress import Progress
from lrm_ext.evaluate.backends import image_url
from lrm_ext.evaluate.items import Item, RefusedAnswer
from lrm_ext.evaluate.kind import JUDGE, LOCAL, UNDECIDED_REPLY, Verdict, judge_answers
from lrm_ext.evaluate.predictions import read_predictions
from lrm_ext.evaluate.registry import DESCRIPTION_FILE, Benchmark, read_description
from lrm_ext.evaluate.results import (
    JUDGES_DIR,
    RunResult,
    answer_files,
    asked_benchmark,
    open_result,
)
from lrm_ext.evaluate.statistics import RaterAgreement, rater_agreement
from lrm_ext.languages import any_language
from lrm_ext.translate.cache import Cache, CachedAnswer, CachedEngine
from lrm_ext.translate.engines.base import Outcome, Reply, TextSegment, Usage, parse_options
from lrm_ext.translate.engines.metered import Work
from lrm_ext.translate.engines.openai import SPEC, OpenAIEngine, OpenAIOptions

log = logging.getLogger(__name__)
CACHE_FILE: Final = "judge-cache.sqlite"
MAX_TOKENS: Final = 1024  # of a reply
# of every sample but the first, which is the likeliest reply
SAMPLE_TEMPERATURE: Final = 0.7
_CUT: Final = "cut off"
_REFUSED: Final = "refused"
_NO_REPLY: Final = "no reply"
_NO_ANSWER: Final = "-"
_OPPONENT: Final = re.compile(r" against (.*?)(?: sample \d+)?$")
_NUMBER: Final = re.compile(r"[-+]?\d+(\.\d+)?")
_MARKUP: Final = " \t*_`#."
_CHARACTERS_PER_TOKEN: Final = 3  # deliberately low; for estimates only
_TOKENS_PER_IMAGE: Final = 1500
_AGAIN: Final = "\n\nKeep strictly to this form, or the reply cannot be read."
_TEMPLATES: Final = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Rubric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a rubric file.

    Attributes:
        name: The file's name.
        title: The benchmark.
        follows: The owner's scale and protocol, and where they are from.
        wording: Whose words the prompt is in.
        reply: What the first line of a reply has: the `score` of an answer; a `ratio` of the
            scores of the reference and the answer, in this order; a `label`; or the better one of
            a `pair`, which is asked in both orders.
        low: The lowest score.
        high: The highest score.
        whole: Whether a score is a whole number.
        labels: For `label` that of a right and of a wrong answer; for `pair` those of the first,
            of the second, and of neither.
        sees_image: Whether the judge sees the image.
        prompt: A Jinja template of what the judge is asked. It knows `question`, `language`,
            `reference`, `answer` (for `pair`: `first` and `second`), and the names in the
            question's `extra` that are not empty.
        form: The request for the form of the reply.
    """

    name: str = ""
    title: str
    follows: str
    wording: str
    reply: Literal["score", "ratio", "label", "pair"]
    low: float = 0.0
    high: float = 1.0
    whole: bool = True
    labels: tuple[str, ...] = ()
    sees_image: bool = False
    prompt: str
    form: str

    def ask(self, item: Item, answer: str, reference: str) -> tuple[str, ...]:
        """Returns what the judge is asked about an answer: one prompt, of a pair one an order.

        Two equal answers are one prompt in both orders.

        Raises:
            DataError: The question lacks what the rubric needs.
        """
        known = {
            **{key: value for key, value in item.extra.items() if value not in (None, "")},
            "question": (item.question or item.text).replace(DEFAULT_IMAGE_TOKEN, "").strip(),
            "language": any_language(item.answer_lang or item.lang).name,
            "reference": reference,
            "answer": answer,
        }
        orders: list[dict[str, Any]] = [{}]
        if self.reply == "pair":
            pairs = ((answer, reference), (reference, answer))
            orders = [{"first": first, "second": second} for first, second in pairs]
        template = _TEMPLATES.from_string(self.prompt)
        try:
            texts = dict.fromkeys(template.render({**known, **order}) for order in orders)
        except UndefinedError as error:
            raise DataError(
                f"question {item.question_id}: rubric {self.name} needs more than the question "
                f"has ({error}); it has {', '.join(item.extra) or 'nothing'} in `extra`: import "
                "the benchmark again, by a mapping with these columns"
            ) from error
        return tuple(f"{text.strip()}\n\n{self.form.strip()}" for text in texts)

    def read(self, reply: CachedAnswer | None) -> str:
        r"""Returns the verdict in a reply.

        Returns:
            `4`, `9/7` (of a ratio: the answer's, then the reference's), or a label; or why the
            reply decides nothing, after `UNDECIDED_REPLY`.

        Example:
            >>> load_rubric("xchat").read(CachedAnswer("**4**\nGood.", None))
            '4'
            >>> load_rubric("xchat").read(CachedAnswer("I would say 4.", None))
            'undecided: prose'
        """
        if reply is None or reply.text is None:
            is_refused = reply is not None and str(reply.error).startswith(_REFUSED)
            return UNDECIDED_REPLY + (_REFUSED if is_refused else _NO_REPLY)
        line, line_end, _ = reply.text.strip().partition("\n")
        if reply.error == _CUT and not line_end:
            return UNDECIDED_REPLY + _CUT
        line = line.strip(_MARKUP)
        if not line:
            return UNDECIDED_REPLY + "empty"
        if self.labels:
            found = [label for label in self.labels if label.casefold() == line.casefold()]
            return found[0] if found else UNDECIDED_REPLY + "prose"
        words = re.split(r"[,;\s]+", line)
        if len(words) != 1 + (self.reply == "ratio") or not all(map(_NUMBER.fullmatch, words)):
            return UNDECIDED_REPLY + "prose"
        scores = [float(word) for word in words]
        if not all(self.low <= s <= self.high and (s == int(s) or not self.whole) for s in scores):
            return UNDECIDED_REPLY + "out of range"
        return "/".join(f"{score:g}" for score in reversed(scores))

    def mark(self, local: Verdict, said: Sequence[str]) -> Verdict:
        """Returns the verdict on an answer.

        Args:
            local: What is known of the answer without a judge.
            said: What was read in the replies, as many as `ask` asks; empty for an answer that
                is not there, which has the lowest mark.
        """
        if undecided := [one for one in said if one.startswith(UNDECIDED_REPLY)]:
            return replace(local, parsed=undecided[0], correct=False, value=None)
        parsed, value = local.parsed, 0.0
        if self.reply == "label":
            is_right = said == [self.labels[0]]
            return replace(local, parsed=said[0] if said else parsed, correct=is_right, value=None)
        if self.reply == "pair" and said:
            first, second, _ = self.labels
            # in the first order the answer comes first, in the other one second
            outcomes = {(first, second): "win", (second, first): "loss"}
            outcomes |= {(one, one): "flip" for one in (first, second)}
            # of two equal answers, both orders are one prompt
            parsed = outcomes.get((said[0], said[-1]), "tie") if len(said) > 1 else "tie"
            value = {"win": 1.0, "loss": 0.0}.get(parsed, 0.5)
        elif self.reply == "ratio":
            parsed = said[0] if said else f"0/{self.high:g}"
            value = float(parsed.partition("/")[0]) / self.high
        elif said:
            parsed = said[0]
            value = (float(parsed) - self.low) / (self.high - self.low)
        return replace(local, parsed=parsed, correct=value == 1.0, value=value)


def rubric_names() -> tuple[str, ...]:
    """Returns the names of the rubrics."""
    return tuple(sorted(path.stem for path in JUDGES_DIR.glob("*.toml")))


@cache
def load_rubric(name: str) -> Rubric:
    """Reads a rubric.

    Raises:
        ConfigError: There is none of this name, or a key is missing, unknown or of another type.
    """
    if name not in rubric_names():
        raise ConfigError(f"no rubric {name!r}; choose from {', '.join(rubric_names())}")
    return msgspec.structs.replace(load_toml(JUDGES_DIR / f"{name}.toml", Rubric), name=name)


def rubric_of(benchmark: Benchmark, lang: str) -> str:
    """Returns the rubric that a benchmark's folder names; "" if it names none."""
    if not (benchmark.folder / DESCRIPTION_FILE).is_file():
        return ""
    return str(read_description(benchmark.folder)["files"].get(lang, {}).get("judge", ""))


def refuse_without_rubric(benchmarks: Sequence[Benchmark]) -> None:
    """Refuses to judge where no benchmark names a rubric.

    Raises:
        ConfigError: There is none.
    """
    if not any(rubric_of(one, lang) for one in benchmarks for lang in one.languages()):
        named = ", ".join(one.name for one in benchmarks)
        raise ConfigError(
            f"--judge: no benchmark of {named} names a rubric, so there is nothing to judge; leave "
            "--judge out, or judge stored answers with `lrm benchmark judge --rubric NAME`"
        )


@dataclass(frozen=True)
class JudgeConfig:
    """The settings of a judge.

    Attributes:
        model: The name that the service knows.
        url: Address of the service.
        cache: File of its replies.
        sample: Which of its replies to take: 1 for the likeliest, other numbers for one drawn with
            this seed at `SAMPLE_TEMPERATURE`.
        rubric: The rubric; "" for the one that the benchmark names.
        opponent: For pairs, the run whose answers are the others; None for the reference answers.
        options: Options of the translation engine `openai`, such as `budget_tokens`.
    """

    model: str
    url: str
    cache: Path
    sample: int = 1
    rubric: str = ""
    opponent: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def engine_options(self) -> OpenAIOptions:
        """Returns the options of the engine that asks.

        Raises:
            ConfigError: One is unknown or wrong.
        """
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--judge-url is {self.url!r}; expected an address such as http://127.0.0.1:8000/v1"
            )
        said = {**self.options, "model": self.model, "base_url": self.url}
        options: OpenAIOptions = parse_options(SPEC, said)
        return replace(options, segments_per_request=1)

    def mode(self, rubric: Rubric) -> str:
        """Returns the mode of its verdicts."""
        against = ""
        if self.opponent is not None and rubric.reply == "pair":
            run = self.opponent.resolve()
            against = f" against {(run.parent if run.name == 'eval' else run).name}"
        sample = f" sample {self.sample}" if self.sample > 1 else ""
        return f"{JUDGE}{rubric.name}:{self.model}{against}{sample}"


class _JudgeEngine(OpenAIEngine):
    """Sends prompts to a judge, and keeps its replies as they are."""

    name = "judge"

    def __init__(self, config: JudgeConfig, lang: str, ledger: Cache) -> None:
        options = config.engine_options()
        super().__init__(options, "", lang, ledger)
        # a key in the address is no part of what decides a reply, and is not written down
        place = urlsplit(options.base_url)
        self.images: dict[str, tuple[Path, ...]] = {}
        self._extra: dict[str, Any] = {"temperature": options.temperature}
        if config.sample > 1:
            self._extra = {"temperature": SAMPLE_TEMPERATURE, "seed": config.sample}
        self.options = {
            "url": f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path.rstrip('/')}",
            "max_tokens": MAX_TOKENS,
            **self._extra,
        }

    def segment(self, prompt: str, images: tuple[Path, ...]) -> TextSegment:
        """Returns a prompt as the cache knows it: with a digest of the images that go with it."""
        digest = sha256_of(*images) if images else ""
        self.images[digest] = images
        return TextSegment(prompt, digest)

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """See `OpenAIEngine`; shows how far it is."""
        with Progress(f"judge {self.target}", len(segments), "replies") as progress:
            for reply in super().translate(segments):
                if reply.outcomes:
                    progress.advance(len(reply.outcomes))
                yield reply

    def body(self, segments: Sequence[TextSegment]) -> dict[str, Any]:
        """See `OpenAIEngine`."""
        content: str | list[dict[str, Any]] = "".join(segment.text for segment in segments)
        if images := [path for segment in segments for path in self.images[segment.context]]:
            urls = ({"url": image_url(path)} for path in images)
            shown = [{"type": "image_url", "image_url": url} for url in urls]
            content = [*shown, {"type": "text", "text": content}]
        said = {key: value for key, value in self._extra.items() if value >= 0}
        messages = [{"role": "user", "content": content}]
        return {"model": self.version, "messages": messages, "max_tokens": MAX_TOKENS, **said}

    def estimate(self, segments: Sequence[TextSegment]) -> Usage:
        """See `OpenAIEngine`; the longest reply, so that no budget is exceeded."""
        (segment,) = segments
        num_images = len(self.images[segment.context])
        sent = len(segment.text) // _CHARACTERS_PER_TOKEN + num_images * _TOKENS_PER_IMAGE
        return self._cost(sent, MAX_TOKENS)

    def read(self, work: Work, answer: ChatReply) -> tuple[list[Outcome], tuple[int, ...], Usage]:
        """See `OpenAIEngine`; every reply is kept, also one that says nothing."""
        text, error = answer.text, _CUT if answer.is_cut else None
        outcome = Outcome(work.indices[0], text, error)
        if answer.refusal:
            outcome = Outcome(work.indices[0], None, f"{_REFUSED}: {answer.refusal}")
        return [outcome], (), self.usage_of(answer)


class ModelJudge:
    """Judges results.

    Args:
        config: Its settings.

    Attributes:
        config: Its settings.
        counts: What it did: replies asked for and from the cache, and those asked for again.

    Raises:
        ConfigError: A setting is wrong.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config, self.counts = config, Counter[str]()
        config.engine_options()
        if config.rubric:
            load_rubric(config.rubric)
        self._cache = Cache(config.cache)

    def judge(self, result: RunResult, benchmark: Benchmark) -> None:
        """Judges the answers to a benchmark in one language, unless no rubric is named.

        What is not in the cache is asked; the verdicts are among those that `result` knows.

        Raises:
            DataError: A question lacks what the rubric needs, or the opponent has not answered it.
            EngineError: The service cannot be used, or the budget is spent; what was answered is
                in the cache, and the same call goes on from there.
        """
        name = self.config.rubric or rubric_of(benchmark, result.lang)
        if not name:
            return
        rubric = load_rubric(name)
        engine = _JudgeEngine(self.config, result.lang, self._cache)
        references = self._references(result, rubric)
        asked: dict[str, tuple[TextSegment, ...]] = {}
        for item in result.items:
            text = result.texts.get(item.question_id)
            if text is None or isinstance(text, RefusedAnswer):
                continue
            images = tuple(map(benchmark.image_path, item.images)) if rubric.sees_image else ()
            prompts = rubric.ask(item, text, references[item.question_id])
            asked[item.question_id] = tuple(engine.segment(p, images) for p in prompts)
        said = self._ask(engine, rubric, [one for own in asked.values() for one in own])
        verdicts = [
            rubric.mark(local, [said[one] for one in asked.get(local.key, ())])
            for local in _without_judge(result)
        ]
        mode = self.config.mode(rubric)
        result.known[mode, False] = tuple(verdicts)
        if mode not in result.judges():
            reasons = Counter(v.parsed.removeprefix(UNDECIDED_REPLY) for v in verdicts)
            log.warning(
                "%s decided on none of %d answers to %s in %s, so there is no score: %s",
                mode, len(verdicts), result.benchmark, result.lang, dict(reasons),
            )  # fmt: skip

    def judge_stored(self, path: Path, name: str, lang: str) -> RunResult:
        """Opens stored answers, and judges them if the benchmark or the settings name a rubric.

        Args:
            path: The file of answers.
            name: The benchmark that they are filed under.
            lang: The language.

        Raises:
            DataError: The answers are to other questions; see `judge` for further errors.
        """
        benchmark = asked_benchmark(path.parent, name)
        if benchmark is None:
            log.warning(
                "%s is not judged: benchmark %s is not where run.json says, and a judge has to be "
                "shown its questions", path, name,
            )  # fmt: skip
        if benchmark is None or not (self.config.rubric or rubric_of(benchmark, lang)):
            return open_result(path, name, lang)
        # an answer does not say all that its question says of itself
        answered = read_predictions(path)
        items = [item for item in benchmark.read(lang) if item.question_id in answered]
        version = benchmark.versions.get(lang, "")
        result = open_result(path, name, lang, items=items, version=version)
        self.judge(result, benchmark)
        return result

    def _ask(
        self, engine: _JudgeEngine, rubric: Rubric, segments: Sequence[TextSegment]
    ) -> dict[TextSegment, str]:
        """Returns what each reply says; one that decides nothing is asked for a second time."""
        cached = CachedEngine(engine, self._cache, "", engine.target)
        unique = list(dict.fromkeys(segments))
        replies, _ = cached.translate(unique, self.counts)
        said = {one: rubric.read(replies.get(one)) for one in unique}
        # who does not answer at all was asked often enough
        again = {
            one: replace(one, text=one.text + _AGAIN)
            for one in unique
            if said[one].startswith(UNDECIDED_REPLY) and not said[one].endswith(_NO_REPLY)
        }
        if again:
            self.counts["asked again"] += len(again)
            replies, _ = cached.translate(list(again.values()), self.counts)
            said |= {one: rubric.read(replies.get(other)) for one, other in again.items()}
        return said

    def _references(self, result: RunResult, rubric: Rubric) -> Mapping[str, str]:
        """Returns what the answers are held against, by question."""
        whose, texts = "", {item.question_id: item.answer for item in result.items if item.answer}
        advice = (
            "for a rubric of pairs, name another run: `lrm benchmark judge RUN --against OTHER`"
        )
        if self.config.opponent is not None and rubric.reply == "pair":
            path = answer_files(self.config.opponent).get((result.benchmark, result.lang))
            whose, texts = f"{self.config.opponent}: ", read_predictions(path) if path else {}
            advice = "have it answer the same questions"
        if missing := [one.question_id for one in result.items if one.question_id not in texts]:
            raise DataError(
                f"{whose}no answers to compare with to {len(missing)} of {len(result.items)} "
                f"questions of {result.benchmark} in {result.lang}, such as {missing[0]}; {advice}"
            )
        return texts


def _without_judge(result: RunResult) -> Sequence[Verdict]:
    """Returns what is known of the answers without a judge, also where nothing is expected."""
    if result.kind.reads_locally(result.lang) and all(item.answer for item in result.items):
        return result.verdicts(LOCAL)
    items = [replace(item, answer=item.answer or _NO_ANSWER) for item in result.items]
    local = result.kind.modes[LOCAL]
    return judge_answers(items, result.texts, result.make_reading(), local, result.excused)


def agreements(result: RunResult) -> dict[tuple[str, str], RaterAgreement]:
    """Returns how far each two judges of a result agree, or two samples of one, by their modes.

    They judged by one rubric and, of pairs, against one opponent; what either of them left
    undecided is left out. A flip is a tie, as in the score.
    """
    modes = result.judges()
    tasks = {mode: (mode.split(":")[1], _OPPONENT.findall(mode)) for mode in modes}
    found: dict[tuple[str, str], RaterAgreement] = {}
    for one, other in combinations(modes, 2):
        if tasks[one] != tasks[other]:
            continue
        pairs = [
            [float(verdict.correct) if verdict.value is None else verdict.value for verdict in pair]
            for pair in zip(result.verdicts(one), result.verdicts(other), strict=True)
            if not (pair[0].missing or pair[0].refused)
            and not any(verdict.parsed.startswith(UNDECIDED_REPLY) for verdict in pair)
        ]
        if pairs:
            is_scale = load_rubric(tasks[one][0]).reply in ("score", "ratio")
            found[one, other] = rater_agreement(*zip(*pairs, strict=True), is_scale=is_scale)
    return found
