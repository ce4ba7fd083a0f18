"""Costly second opinions on translations: models that judge them, or translate them back.

Input: pairs of an English text and its translation. Output: a figure for each, larger is worse, 0
is perfect, like those of the checks. What a scorer needs is imported when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from llava.errors import ConfigError
from lrm_ext.languages.registry import ENGLISH
from lrm_ext.translation.cache import Answer, Cache, Keys
from lrm_ext.translation.engines.base import Engine, Segment, identity
from lrm_ext.translation.engines.registry import get_spec, parse_options

# These take no notice of the language that they are asked to translate from.
_FROM_ENGLISH = frozenset({"memory", "apertium", "opus-mt"})
_BATCH = 32

Pairs = Sequence[tuple[str, str]]
Options = Mapping[str, str]


class Scorer(Protocol):
    """Something that judges translations.

    Attributes:
        identity: All that decides its figures, for people and for comparing; JSON values.
    """

    identity: Mapping[str, Any]

    def score(self, pairs: Pairs) -> list[float | None]:
        """Judge pairs of an English text and its translation; None where it cannot."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


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
        """Judge pairs; see `Scorer`."""
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
            fresh: dict[bytes, Answer] = {}
            for outcome in reply.outcomes:
                text = missing[outcome.index]
                found[text] = outcome.text
                if outcome.is_final:
                    fresh[keys[text]] = Answer(outcome.text, outcome.error)
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
        """Judge pairs; see `Scorer`."""
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
        """Judge pairs; see `Scorer`."""
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
