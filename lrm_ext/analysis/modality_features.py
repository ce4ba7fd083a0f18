"""Features of pictures and texts in a model: what `modality.py` measures and Figure 5 shows.

In: a checkpoint and a corpus. Out: per sample the mean over patches of the picture after the
projector, and the mean over tokens of the text in each language, as they go into the language model
and after some of its layers, saved as `.npz`. Pictures and texts go through the model apart, each
behind the token that begins a text, which is left out of the mean: models park what they do not
need there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError, ConfigError, DataError
from llava.files import writing
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path, process_images
from lrm_ext.analysis.modality import IMAGE
from lrm_ext.corpus.store import Corpus
from lrm_ext.evaluation.report import ENGLISH
from lrm_ext.mixture.order import Permutation

MAX_LAYERS: Final = 9
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Samples:
    """Pictures with the same text in several languages.

    Attributes:
        rows: Their numbers in the corpus.
        images: Paths.
        texts: By language.
        num_left_out: Rows met on the way that were left out, by reason.
    """

    rows: tuple[int, ...]
    images: tuple[Path, ...]
    texts: dict[str, tuple[str, ...]]
    num_left_out: dict[str, int]


def draw_samples(corpus: Corpus, languages: Sequence[str], num: int, seed: int) -> Samples:
    """Draw rows that have a picture and accepted texts in all languages; no picture or text twice.

    A picture or an English text that was drawn before is left out: the right text could not be
    told from its double.

    Args:
        corpus: Where from.
        languages: Codes, English among them.
        num: N; fewer if the corpus has no more.
        seed: Of the draw.

    Raises:
        DataError: The corpus lacks a language, or has not ten such rows.
    """
    if lacking := [lang for lang in languages if lang not in corpus.languages]:
        raise DataError(
            f"{corpus.path} has no {', '.join(lacking)}; it has {', '.join(corpus.languages)}"
        )
    rows: list[int] = []
    images: list[Path] = []
    texts: dict[str, list[str]] = {lang: [] for lang in languages}
    left_out = dict.fromkeys(
        ("no picture", "not in every language", "picture drawn before", "text drawn before"), 0
    )
    seen: tuple[set[Path], set[str]] = (set(), set())
    for index in Permutation(len(corpus), (seed, 0)):
        image = corpus.image_path(index)
        found = {lang: _text_of(corpus, lang, index) for lang in languages}
        english = found[ENGLISH]
        if image is None or english is None or None in found.values():
            left_out["no picture" if image is None else "not in every language"] += 1
        elif image in seen[0] or english in seen[1]:
            left_out[f"{'picture' if image in seen[0] else 'text'} drawn before"] += 1
        else:
            seen[0].add(image)
            seen[1].add(english)
            rows.append(index)
            images.append(image)
            for lang, text in found.items():
                texts[lang].append(text or "")
        if len(rows) == num:
            break
    if len(rows) < 10:
        raise DataError(f"{corpus.path}: {len(rows)} usable rows, expected 10 or more: {left_out}")
    return Samples(tuple(rows), tuple(images), {k: tuple(v) for k, v in texts.items()}, left_out)


def _text_of(corpus: Corpus, lang: str, index: int) -> str | None:
    """Question and answer without the image token; None if there is no accepted text."""
    turns = corpus.turns(lang, index)
    if turns is None:
        return None
    return "\n".join(turn.text.replace(DEFAULT_IMAGE_TOKEN, "").strip() for turn in turns)


class FeatureExtractor:
    """A loaded model that turns pictures and texts into means of hidden states.

    Args:
        model_path: A checkpoint in LLaVA's format.
        model_base: The base model of a LoRA or projector-only checkpoint.
        layers: Which; None for at most nine, evenly spaced. 0 is the input.
        device: By default a GPU where there is one.

    Raises:
        CheckpointError: The model takes no pictures.
        ConfigError: There is no such layer.
    """

    def __init__(
        self,
        model_path: Path,
        model_base: str | None = None,
        layers: Sequence[int] | None = None,
        device: str | None = None,
    ) -> None:
        from llava.model.builder import load_pretrained_model

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        name = get_model_name_from_path(str(model_path))
        self._tokenizer, model, self._image_processor, _ = load_pretrained_model(
            str(model_path), model_base, name, device=device
        )
        if self._image_processor is None:
            raise CheckpointError(f"{model_path} is a text-only model: it has no vision tower")
        self._model: Any = model.eval()
        last = int(model.config.num_hidden_layers)
        self.layers = tuple(layers) if layers is not None else spaced_layers(last)
        if self.layers[0] != 0 or any(not 0 <= layer <= last for layer in self.layers):
            raise ConfigError(f"--layers {self.layers}: expected 0 and others up to {last}")

    @torch.inference_mode()
    def images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Means over patches: [L, B, D]."""
        pictures = [open_image(path) for path in paths]
        pixels = process_images(pictures, self._image_processor, self._model.config)
        place = {"device": self._model.device, "dtype": self._model.dtype}
        rows = [
            self._model.encode_images((x if x.ndim == 4 else x[None]).to(**place)).flatten(0, 1)
            for x in pixels
        ]
        return self._means(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Means over tokens: [L, B, D].

        Raises:
            DataError: A text has no token, or more than the model takes.
        """
        limit = getattr(self._model.config, "max_position_embeddings", None)
        rows = []
        for text in texts:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            if not ids or (limit and len(ids) >= limit):
                raise DataError(f"{len(ids)} tokens, expected 1 to {limit}: {text[:80]!r}")
            rows.append(self._embed(ids))
        return self._means(rows)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embedding = self._model.get_input_embeddings()
        return embedding(torch.tensor(ids, device=embedding.weight.device))

    def _means(self, rows: Sequence[Tensor]) -> NDArray[np.float32]:
        """Run rows [T_i, D] through the language model, padded on the right."""
        begin = self._tokenizer.bos_token_id
        prefix = [] if begin is None else [begin]
        skip = len(prefix)
        rows = [torch.cat([self._embed(prefix), row]) for row in rows] if prefix else list(rows)
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        place = torch.arange(padded.shape[1], device=padded.device)
        mask = place[None] < lengths[:, None]
        states = [padded]
        if self.layers[-1] > 0:
            states = self._model.get_model()(
                inputs_embeds=padded, attention_mask=mask.long(), output_hidden_states=True,
                use_cache=False,
            ).hidden_states  # fmt: skip
        counted = (mask & (place[None] >= skip))[..., None]
        means = [
            (states[layer].float() * counted).sum(dim=1) / counted.sum(dim=1)
            for layer in self.layers
        ]
        return torch.stack(means).cpu().numpy()


def spaced_layers(last: int) -> tuple[int, ...]:
    """At most nine layers from the input to the last, evenly spaced."""
    return tuple(sorted({round(x) for x in np.linspace(0, last, min(MAX_LAYERS, last + 1))}))


def extract(
    extractor: FeatureExtractor,
    samples: Samples,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NDArray[np.float32]]:
    """Features by `image` and language, [L, N, D], batch by batch.

    Args:
        extractor: The model.
        samples: The samples.
        batch_size: Pictures or texts at once.
        progress: Called with the numbers of batches done and in all.

    Raises:
        DataError: A feature is not a finite number.
    """
    starts = range(0, len(samples.rows), batch_size)
    total = len(starts) * (1 + len(samples.texts))
    features: dict[str, NDArray[np.float32]] = {}
    done = 0
    for name in (IMAGE, *samples.texts):
        parts = []
        for start in starts:
            chosen = slice(start, start + batch_size)
            if name == IMAGE:
                parts.append(extractor.images(samples.images[chosen]))
            else:
                parts.append(extractor.texts(samples.texts[name][chosen]))
            done += 1
            progress(done, total)
        features[name] = np.concatenate(parts, axis=1)
        if not np.isfinite(features[name]).all():
            raise DataError(
                f"features of {name} are not finite: the model computes NaN or infinity"
            )
    return features


def save_features(
    path: Path, features: dict[str, NDArray[np.float32]], about: dict[str, Any]
) -> None:
    """Write features and what they are of; `path` ends with .npz."""
    content: dict[str, Any] = {f"features_{name}": array for name, array in features.items()}
    content["about"] = np.array(json.dumps({"format_version": FORMAT_VERSION, **about}))
    # an open file: to a name without its ending, numpy would add one
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)


def load_features(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Read what `save_features` wrote.

    Raises:
        DataError: It is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            features = {
                name.removeprefix("features_"): file[name]
                for name in file.files
                if name.startswith("features_")
            }
        if about["format_version"] != FORMAT_VERSION or IMAGE not in features:
            raise DataError(f"{path}: features of version {about['format_version']}")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: not a file of features ({error!r}); `lrm modality-gap MODEL --out "
            "FILE.npz` makes one"
        ) from error
    return features, about
