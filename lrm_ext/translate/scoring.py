"""`lrm corpus score`: checks and second opinions on texts that are in a corpus already.

Input: a corpus with texts in a language, whoever made them. Output: the same texts with more
figures and, where a limit is passed, another status. It goes part by part and may be killed like a
translation; the texts themselves are not touched. Scorers are costly: models that judge pairs of an
English text and its translation, or translate them back. Their figures are like those of the
checks: larger is worse, 0 is perfect. What a scorer needs is imported when it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH, TEXT_SCHEMA, Corpus, CorpusRow, CorpusText
from lrm_ext.translate.cache import Cache, CachedAnswer, Keys
from lrm_ext.translate.engines.base import Engine, Segment, get_spec, identity, parse_options
from lrm_ext.translate.quality import QUALITY_VERSION, Checker, get_thresholds
from lrm_ext.translate.runner import PartStore, locked, read_description, text_dir
from lrm_ext.translate.segment import UNIT, frame

# These take no notice of the language that they are asked to translate from.
_FROM_ENGLISH = frozenset({"memory", "apertium", "opus-mt"})
_BATCH = 32

Pairs = Sequence[tuple[str, str]]
Options = Mapping[str, str]


class BackTranslation:
    """Translates back into English and compares: 1 - chrF, from 0 (the same) to 1.

    Args:
        options: `engine`, and options of that engine.
        lang: Code of the language of the translations.
        cache: File of answers, as for translating.

    Raises:
        ConfigError: No engine is named, it cannot do this, or sacrebleu is not installed.
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
        self._engine: Engine = spec.build(settings, lang, ENGLISH, self._cache)
        self._keys = Keys(self._engine, lang, ENGLISH)
        self._chrf = CHRF()
        metric = f"chrF of sacrebleu {sacrebleu.__version__}"
        self.identity: Mapping[str, Any] = {"engine": identity(self._engine), "metric": metric}

    def score(self, pairs: Pairs) -> list[float | None]:
        """Judge pairs of an English text and its translation; None where it cannot."""
        back = self._translate(list(dict.fromkeys(target for _, target in pairs)))
        return [
            None
            if (text := back.get(target)) is None
            else 1 - self._chrf.sentence_score(text, [source]).score / 100
            for source, target in pairs
        ]

    def _translate(self, texts: Sequence[str]) -> dict[str, str | None]:
        keys = {text: self._keys.key(Segment(text)) for text in texts}
        known = self._cache.get_many(list(keys.values()))
        found = {text: known[key].text for text, key in keys.items() if key in known}
        missing = [text for text in texts if text not in found]
        for reply in self._engine.translate([Segment(text) for text in missing]) if missing else ():
            fresh: dict[bytes, CachedAnswer] = {}
            for outcome in reply.outcomes:
                text = missing[outcome.index]
                found[text] = outcome.text
                if outcome.is_final:
                    fresh[keys[text]] = CachedAnswer(outcome.text, outcome.error)
            self._cache.put(fresh, self._engine, ENGLISH, reply.usage)
        return found

    def close(self) -> None:
        """Close engine and cache."""
        self._engine.close()
        self._cache.close()


class Labse:
    """Compares meanings across languages: 1 - cosine of LaBSE's sentence vectors, from 0 to 2.

    Args:
        options: `model`, a folder or a name on the Hugging Face hub, and `device`.
        lang: Code of the language of the translations; the model needs none.
        cache: Not used.
    """

    def __init__(self, options: Options, lang: str, cache: Path) -> None:
        _check_options("labse", options, ("model", "device"))
        self._model_name = options.get("model", "setu4993/LaBSE")
        self._device = options.get("device", "cpu")
        self._loaded: tuple[Any, Any] | None = None
        self.identity: Mapping[str, Any] = {"model": self._model_name}

    def score(self, pairs: Pairs) -> list[float | None]:
        """Judge pairs of an English text and its translation; None where it cannot."""
        import torch

        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        # texts of one length side by side need no padding
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: dict[str, Any] = {}
        for start in range(0, len(texts), _BATCH):
            some = [texts[i] for i in order[start : start + _BATCH]]
            vectors |= zip(some, self._embed(some), strict=True)
        return [max(0.0, 1 - float(torch.dot(vectors[a], vectors[b]))) for a, b in pairs]

    def _embed(self, texts: list[str]) -> Any:
        """Unit vectors, `[len(texts), D]`, float32."""
        import torch

        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self._model_name)
                model = AutoModel.from_pretrained(self._model_name).eval().to(self._device)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"labse: the model {self._model_name!r} cannot be loaded ({error}); expected "
                    "a folder or a name on the hub with --option labse.model=..."
                ) from error
            self._loaded = tokenizer, model
        tokenizer, model = self._loaded
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            pooled = model(**inputs).pooler_output.float().cpu()
        return torch.nn.functional.normalize(pooled, dim=-1)

    def close(self) -> None:
        """Forget the model."""
        self._loaded = None


class CometQE:
    """Asks a model that learnt from people's judgement: 1 - COMET's estimate without a reference.

    Args:
        options: `model`, a checkpoint file or a name that COMET knows; `gpus`, a number.
        lang: Code of the language of the translations; the model needs none.
        cache: Not used.

    Raises:
        ConfigError: COMET is not installed.
    """

    def __init__(self, options: Options, lang: str, cache: Path) -> None:
        _check_options("comet", options, ("model", "gpus"))
        try:
            import comet
        except ImportError as error:
            raise ConfigError(
                "the score comet needs COMET: pip install unbabel-comet. It may ask for an older "
                "transformers than the rest of this project; give it an environment of its own."
            ) from error
        self._comet: Any = comet
        self._model_name = options.get("model", "Unbabel/wmt22-cometkiwi-da")
        self._gpus = int(options.get("gpus", "0"))
        self._model: Any = None
        self.identity: Mapping[str, Any] = {"model": self._model_name}

    def score(self, pairs: Pairs) -> list[float | None]:
        """Judge pairs of an English text and its translation; None where it cannot."""
        if self._model is None:
            path = self._model_name
            if not Path(path).is_file():
                path = self._comet.download_model(path)
            self._model = self._comet.load_from_checkpoint(path)
        data = [{"src": source, "mt": target} for source, target in pairs]
        found = self._model.predict(data, batch_size=_BATCH, gpus=self._gpus, progress_bar=False)
        return [1 - float(score) for score in found.scores]

    def close(self) -> None:
        """Forget the model."""
        self._model = None


Scorer = BackTranslation | Labse | CometQE
SCORERS: Mapping[str, Callable[[Options, str, Path], Scorer]] = MappingProxyType(
    {"back-translation": BackTranslation, "labse": Labse, "comet": CometQE}
)


def split_scorer_options(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read `scorer.name=value`.

    Raises:
        ConfigError: It is of another form, or of a scorer that is not asked for.
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


def _check_options(name: str, options: Options, known: Sequence[str]) -> None:
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"score {name!r} has no option {', '.join(unknown)}; it has: {', '.join(known)}."
        )


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
            if (counts := store.finished()) is not None:
                return counts
            store.begin()
            missing = store.missing()
            for done, number in enumerate(missing, start=store.num_parts - len(missing) + 1):
                store.write(number, _score_part(job, store, tools, number))
                progress(done, store.num_parts)
            return store.commit()
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


def pairs_of(row: CorpusRow, text: CorpusText) -> list[tuple[str, str]]:
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


def _is_translated(text: CorpusText) -> bool:
    return text.status != "rejected" or text.quality is not None


def _checked(row: CorpusRow, text: CorpusText, checker: Checker) -> CorpusText:
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


def _scored(text: CorpusText, name: str, figure: float, limit: float | None) -> CorpusText:
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
