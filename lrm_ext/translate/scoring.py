"""Scores the texts of a corpus with checks and models (`lrm corpus score`).

Adds values to the texts of a language, whoever made them, and changes the status of texts above a
limit; the texts themselves do not change. Works part by part and, like a translation, survives
being killed. Scorers are costly: models that judge pairs of an English text and its translation, or
translate back. As for checks, larger values are worse and 0 is perfect. A scorer imports its
packages when it is constructed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH, Corpus, CorpusRow, CorpusText
from lrm_ext.translate.cache import Cache, CachedEngine
from lrm_ext.translate.engines.base import (
    TextSegment,
    TranslationEngine,
    get_spec,
    identity,
    parse_options,
)
from lrm_ext.translate.quality import QUALITY_VERSION, Checker, get_thresholds
from lrm_ext.translate.runner import PartStore, batch_of, only_run, read_description, text_dir
from lrm_ext.translate.segment import UNIT, frame

# These ignore the language that they are asked to translate from.
_FROM_ENGLISH = frozenset({"memory", "apertium", "opus-mt"})
_BATCH = 32

Pairs = Sequence[tuple[str, str]]
Options = Mapping[str, str]


class Scorer(Protocol):
    """Scores pairs of an English text and its translation.

    Attributes:
        identity: Everything that decides its values.
    """

    identity: Mapping[str, Any]

    def score(self, pairs: Pairs) -> list[float | None]:
        """Returns the value of each pair; None if it has none."""

    def close(self) -> None:
        """Frees its resources."""
        return


class BackTranslation(Scorer):
    """Translates back into English and compares: 1 - chrF, from 0 (the same) to 1.

    Args:
        options: `engine`, and options of that engine.
        lang: Code of the language of the translations.
        cache: The cache file, as for translating.

    Raises:
        ConfigError: No engine is named, it translates from English only, or sacrebleu is not
            installed.
    """

    def __init__(self, options: Options, lang: str, cache: Path) -> None:
        try:
            import sacrebleu
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise ConfigError(
                "the score back-translation needs sacrebleu: pip install 'lrm-llava[translate]'"
            ) from error
        name = options.get("engine")
        if name is None or name in _FROM_ENGLISH:
            found = "none" if name is None else f"{name!r}, which translates from English only"
            raise ConfigError(
                f"back-translation: the engine is {found}; expected --option "
                "back-translation.engine=NAME of one such as nllb, madlad or openai."
            )
        spec = get_spec(name)
        settings = parse_options(spec, {k: v for k, v in options.items() if k != "engine"})
        self._cache = Cache(cache)
        self._engine: TranslationEngine = spec.build(settings, lang, ENGLISH, self._cache)
        self._cached = CachedEngine(self._engine, self._cache, lang, ENGLISH)
        self._chrf = CHRF()
        metric = f"chrF of sacrebleu {sacrebleu.__version__}"
        self.identity = {"engine": identity(self._engine), "metric": metric}

    def score(self, pairs: Pairs) -> list[float | None]:
        """See `Scorer`."""
        asked = dict.fromkeys(TextSegment(target) for _, target in pairs)
        answers, _ = self._cached.translate(list(asked), Counter())
        back = [answers.get(TextSegment(target)) for _, target in pairs]
        return [
            None
            if answer is None or answer.text is None
            else 1 - self._chrf.sentence_score(answer.text, [source]).score / 100
            for (source, _), answer in zip(pairs, back, strict=True)
        ]

    def close(self) -> None:
        """Closes the engine and the cache."""
        self._engine.close()
        self._cache.close()


class Labse(Scorer):
    """Compares meanings across languages: 1 - cosine of LaBSE's sentence vectors, from 0 to 2.

    Args:
        options: `model`, a folder or a name on the Hugging Face hub, and `device`.
        lang: Not used.
        cache: Not used.
    """

    def __init__(self, options: Options, lang: str, cache: Path) -> None:
        self._options = _options("labse", options, model="setu4993/LaBSE", device="cpu")
        self.identity = {"model": self._options["model"]}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        from transformers import AutoModel, AutoTokenizer

        name = self._options["model"]
        try:
            model = AutoModel.from_pretrained(name).eval().to(self._options["device"])
            return AutoTokenizer.from_pretrained(name), model
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"labse: the model {name!r} cannot be loaded ({error}); expected a folder or a "
                "name on the hub with --option labse.model=..."
            ) from error

    def score(self, pairs: Pairs) -> list[float | None]:
        """See `Scorer`."""
        import torch

        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        # texts of equal length in a batch need no padding
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: dict[str, Any] = {}
        for start in range(0, len(texts), _BATCH):
            some = [texts[i] for i in order[start : start + _BATCH]]
            vectors |= zip(some, self._embed(some), strict=True)
        return [max(0.0, 1 - float(torch.dot(vectors[a], vectors[b]))) for a, b in pairs]

    def _embed(self, texts: list[str]) -> Any:
        """Returns unit vectors, `[len(texts), D]`, float32."""
        import torch

        tokenizer, model = self._loaded
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            pooled = model(**inputs).pooler_output.float().cpu()
        return torch.nn.functional.normalize(pooled, dim=-1)


class CometQE(Scorer):
    """Asks a model trained on human judgements: 1 - COMET's reference-free estimate.

    Args:
        options: `model`, a checkpoint file or a name that COMET knows; `gpus`, a number.
        lang: Not used.
        cache: Not used.

    Raises:
        ConfigError: COMET is not installed.
    """

    def __init__(self, options: Options, lang: str, cache: Path) -> None:
        try:
            import comet
        except ImportError as error:
            raise ConfigError(
                "the score comet needs COMET: pip install unbabel-comet. It may ask for an older "
                "transformers than the rest of this project; give it an environment of its own."
            ) from error
        self._comet: Any = comet
        self._options = _options("comet", options, model="Unbabel/wmt22-cometkiwi-da", gpus="0")
        self.identity = {"model": self._options["model"]}

    @cached_property
    def _model(self) -> Any:
        name = self._options["model"]
        path = name if Path(name).is_file() else self._comet.download_model(name)
        return self._comet.load_from_checkpoint(path)

    def score(self, pairs: Pairs) -> list[float | None]:
        """See `Scorer`."""
        data = [{"src": source, "mt": target} for source, target in pairs]
        found = self._model.predict(
            data, batch_size=_BATCH, gpus=int(self._options["gpus"]), progress_bar=False
        )
        return [1 - float(score) for score in found.scores]


SCORERS: Mapping[str, Callable[[Options, str, Path], Scorer]] = MappingProxyType(
    {"back-translation": BackTranslation, "labse": Labse, "comet": CometQE}
)


def split_scorer_options(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parses `scorer.name=value`.

    Raises:
        ConfigError: A text has another form, or names another scorer.
    """
    result: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not equals or not dot or name not in result:
            raise ConfigError(
                f"--option {text}: expected scorer.name=value, the scorer one of "
                f"{', '.join(names)}; such as labse.model=folder."
            )
        result[name][option] = value
    return result


def _options(name: str, options: Options, **defaults: str) -> dict[str, str]:
    """Returns the options of a scorer, with defaults."""
    if unknown := sorted(options.keys() - defaults.keys()):
        raise ConfigError(
            f"score {name!r} has no option {', '.join(unknown)}; it has: {', '.join(defaults)}."
        )
    return {**defaults, **options}


CHECKS = "checks"
NAMES = (CHECKS, *SCORERS)
# Scorers say little about fewer words; a row without longer lines is scored as a whole.
_MIN_WORDS = 4


@dataclass(frozen=True)
class ScoreJob:
    """The options of a scoring run.

    Attributes:
        corpus: Folder of the corpus.
        lang: Code of the language.
        names: Some of `NAMES`.
        options: Options of scorers, by scorer.
        limits: The largest value that passes, by check or scorer; a scorer without a limit only
            adds its value.
        cache: The cache file of a back-translation.
    """

    corpus: Path
    lang: str
    names: tuple[str, ...]
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    cache: Path = Path("translation-cache.sqlite")


def score_corpus(
    job: ScoreJob, progress: Callable[[int, int], None] = lambda done, total: None
) -> Counter[str]:
    """Scores all texts in a language.

    Args:
        job: The job.
        progress: Called with the number of finished parts and the total.

    Returns:
        Counts of rows by status and by reason.

    Raises:
        ConfigError: A name, option or limit is unknown, or a package is not installed.
        DataError: The corpus lacks the language or is damaged, or another run is at work on it.
    """
    corpus = Corpus.open(job.corpus)
    if job.lang == ENGLISH or job.lang not in corpus.languages:
        there = ", ".join(corpus.languages[1:]) or "none"
        raise ConfigError(f"{job.corpus}: no texts in {job.lang!r} to score; it has: {there}.")
    checker, scorers = _judges(job)
    try:
        with only_run(job.corpus, job.lang, f"texts in {job.lang!r}"):
            store = PartStore(corpus, job.lang, _describe(job, checker, scorers))
            if (counts := store.finished()) is not None:
                return counts
            return store.make(
                lambda numbers: (_score_part(job, store, checker, scorers, n) for n in numbers),
                progress,
            )
    finally:
        for scorer in scorers.values():
            scorer.close()


def _judges(job: ScoreJob) -> tuple[Checker | None, dict[str, Scorer]]:
    unknown = [name for name in job.names if name not in NAMES]
    if unknown or not job.names:
        raise ConfigError(
            f"--by {', '.join(unknown) or 'nothing'}: expected some of {', '.join(NAMES)}."
        )
    names = [name for name in job.names if name != CHECKS]
    of_checks = {name: limit for name, limit in job.limits.items() if name not in names}
    checker = None
    if CHECKS in job.names:
        thresholds = get_thresholds(job.lang).with_limits(of_checks)
        checker = Checker(job.lang, thresholds)
    elif of_checks:
        raise ConfigError(
            f"--limit {', '.join(of_checks)}: expected some of {', '.join(names)}; limits of "
            f"checks need --by {CHECKS}."
        )
    return checker, {n: SCORERS[n](job.options.get(n, {}), job.lang, job.cache) for n in names}


def _describe(
    job: ScoreJob, checker: Checker | None, scorers: Mapping[str, Scorer]
) -> dict[str, Any]:
    """Returns how the texts were made, as before, and how they were scored."""
    made = read_description(text_dir(job.corpus, job.lang)) or {"target": job.lang, "engines": []}
    made.pop("counts", None)
    scores = made.setdefault("scores", {})
    if checker is not None:
        limits = dict(checker.thresholds.limits)
        scores[CHECKS] = {"version": QUALITY_VERSION, "limits": limits}
    for name, scorer in scorers.items():
        scores[name] = {**scorer.identity, "limit": job.limits.get(name)}
    return made


def _score_part(
    job: ScoreJob,
    store: PartStore,
    checker: Checker | None,
    scorers: Mapping[str, Scorer],
    number: int,
) -> pa.RecordBatch:
    numbers = store.row_numbers(number)
    rows = {i: store.corpus.row(i) for i in numbers}
    texts = {i: text for i in numbers if (text := store.corpus.text(job.lang, i)) is not None}
    if checker is not None:
        texts = {i: _checked(rows[i], text, checker) for i, text in texts.items()}
    for name, scorer in scorers.items():
        # a text without a translation cannot be scored
        judged = {i: pairs_of(rows[i], t) for i, t in texts.items() if _is_translated(t)}
        pairs = list(dict.fromkeys(pair for found in judged.values() for pair in found))
        values = dict(zip(pairs, scorer.score(pairs), strict=True)) if pairs else {}
        for i, found in judged.items():
            known = [value for pair in found if (value := values[pair]) is not None]
            if known:
                texts[i] = _scored(texts[i], name, max(known), job.limits.get(name))
    return batch_of(map(texts.get, numbers))


def pairs_of(row: CorpusRow, text: CorpusText) -> list[tuple[str, str]]:
    """Returns lines of a row and their translations, joined to one pair if all are short."""
    every: list[tuple[str, str]] = []
    for ours, theirs in zip(row.turns, text.turns, strict=False):
        lines, others = ours.text.splitlines(), theirs.text.splitlines()
        if len(lines) != len(others):
            lines, others = [ours.text], [theirs.text]
        every += [
            (line, other)
            for line, other in zip(lines, others, strict=True)
            if other.strip() and any(piece.kind == UNIT for piece in frame(line))
        ]
    longer = [pair for pair in every if len(pair[0].split()) >= _MIN_WORDS]
    if longer or not every:
        return longer
    return [("\n".join(line for line, _ in every), "\n".join(other for _, other in every))]


def _is_translated(text: CorpusText) -> bool:
    return text.status != "rejected" or text.quality is not None


def _checked(row: CorpusRow, text: CorpusText, checker: Checker) -> CorpusText:
    """Checks a text again; a text that could not be translated stays rejected."""
    if not _is_translated(text):
        return text
    verdict = checker.check_turns(row.turns, text.turns)
    # keep the values of scorers
    quality = {k: v for k, v in (text.quality or {}).items() if k in SCORERS}
    reason = "; ".join(verdict.reasons) or None
    return replace(
        text, status=verdict.status, reason=reason, quality={**verdict.values, **quality}
    )


def _scored(text: CorpusText, name: str, value: float, limit: float | None) -> CorpusText:
    """Adds a value to a text, and removes findings of an earlier limit of the same scorer."""
    quality = {**(text.quality or {}), name: round(value, 4)}
    if limit is None:
        return replace(text, quality=quality)
    reasons = [r for r in (text.reason or "").split("; ") if r and not r.startswith(f"{name}: ")]
    status = "ok" if text.status == "suspect" and not reasons else text.status
    if value > limit:
        reasons.append(f"{name}: {value:.2f}, the limit is {limit:g}")
        status = "suspect" if status == "ok" else status
    return replace(text, status=status, reason="; ".join(reasons) or None, quality=quality)
