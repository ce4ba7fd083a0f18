"""Measures and draws the gap between images and texts in a model (the paper's Figure 5).

In: a checkpoint and a corpus. Out: features, numbers, and a figure.

A feature is, for each sample, the mean over patches of the image after the projector, or the mean
over tokens of the text in a language: as they go into the language model (layer 0) and after some
of its layers. Images and texts go through the model apart, each behind the token that begins a
text, which is left out of the mean: models park what they do not need there.

The numbers are the distance of the centroids, how well a straight cut separates both, whether the
nearest text of another language (or of an image) is the right one, and CKA. None depends on t-SNE,
which the figure shows as lines of equal density, models side by side.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.files import writing
from llava.images import open_image
from llava.mm_utils import process_images
from llava.progress import Progress
from lrm_ext.corpus.store import ENGLISH, Corpus
from lrm_ext.evaluate.answerer import load_with_tower
from lrm_ext.languages import language_name
from lrm_ext.mixture.order import Permutation
from lrm_ext.report.render import BLUE, ORANGE, terminal_table

Features = NDArray[np.float32]
IMAGE: Final = "image"
NUM_FOLDS: Final = 5
_CHUNK: Final = 512


def need_scikit_learn() -> None:
    """Checks that scikit-learn is there, before anything that takes long.

    Raises:
        ConfigError: It is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "scikit-learn is not installed, which separates images from texts and draws t-SNE: "
            "pip install 'lrm-llava[figures]'"
        ) from error


def centroid_distance(a: Features, b: Features) -> dict[str, float]:
    """Returns the distance of the means of two sets, also in units of their spread.

    Args:
        a: [N, D].
        b: [M, D].

    Returns:
        `distance`, and `relative`: divided by the root of the mean squared distance of a feature
        from its own mean, averaged over both sets. 0 for sets around the same point.
    """
    means = [x.mean(axis=0, dtype=np.float64) for x in (a, b)]
    spreads = [
        ((x.astype(np.float64) - mean) ** 2).sum(axis=1).mean()
        for x, mean in zip((a, b), means, strict=True)
    ]
    distance = float(np.linalg.norm(means[0] - means[1]))
    scale = float(np.sqrt(sum(spreads) / 2))
    return {"distance": distance, "relative": distance / scale if scale else float("inf")}


def separability(a: Features, b: Features, seed: int = 0) -> float:
    """Returns how often a straight cut tells two sets apart, on samples it was not fitted to.

    Five-fold cross-validation of a logistic regression on standardised features; the image and
    the text of a sample are in the same fold.

    Args:
        a: [N, D].
        b: [N, D], the same samples.
        seed: Of the folds.

    Returns:
        Share of right decisions: 0.5 if nothing tells them apart, 1 if everything does.
    """
    need_scikit_learn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    num = len(a)
    assert num == len(b) >= NUM_FOLDS
    order = np.random.Generator(np.random.PCG64(seed)).permutation(num)
    tests = [np.concatenate([fold, fold + num]) for fold in np.array_split(order, NUM_FOLDS)]
    folds = [(np.setdiff1d(np.arange(2 * num), test), test) for test in tests]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    labels = np.repeat([0, 1], num)
    with warnings.catch_warnings():
        # sets that a cut separates entirely have no finite optimum
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = cross_val_predict(model, np.concatenate([a, b]), labels, cv=folds)
    return float((found == labels).mean())


def recall_at_1(queries: Features, targets: Features) -> float:
    """Returns how often the nearest target of a query is that of the same sample.

    Nearest by cosine, after the mean of each set is taken away: a mere shift between the sets is
    what `centroid_distance` tells. Among n equally near ones each counts 1/n.

    Args:
        queries: [N, D].
        targets: [N, D], the same samples in the same order.

    Returns:
        A share; 1/N by chance.
    """
    q, t = (_directions(features) for features in (queries, targets))
    total = 0.0
    for start in range(0, len(q), _CHUNK):
        similarity = q[start : start + _CHUNK] @ t.T
        own = similarity.diagonal(start)
        least = similarity.max(axis=1) - 1e-9
        ties = (similarity >= least[:, None]).sum(axis=1)
        total += float(((own >= least) / ties).sum())
    return total / len(q)


def _directions(features: Features) -> NDArray[np.float64]:
    centred = _centred(features)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms == 0, 1, norms)


def _centred(features: Features) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    return wide - wide.mean(axis=0)


def linear_cka(a: Features, b: Features) -> float:
    """Returns the linear centred kernel alignment of two features of the same samples.

    1 if one is a rotation and scaling of the other, 0 if they are uncorrelated. With few samples
    and many dimensions it is larger than 0 for noise, too: compare models, at equal N.

    Args:
        a: [N, D].
        b: [N, E].
    """
    x, y = _centred(a), _centred(b)
    if len(x) < max(x.shape[1], y.shape[1]):
        # by Gram matrices, which are smaller then
        first, second = x @ x.T, y @ y.T
        cross = float((first * second).sum())
    else:
        first, second = x.T @ x, y.T @ y
        cross = float(np.linalg.norm(y.T @ x) ** 2)
    scale = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return cross / scale if scale else 0.0


def measure(
    features: Mapping[str, Features], layers: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Returns all numbers of one model.

    Args:
        features: By `image` and language, [L, N, D].
        layers: Which layers they are of; the first is 0.
        seed: Of the folds.

    Returns:
        `languages`: per language the distance and separability of images and texts at layer 0;
        `layers`: per layer recall at 1 and CKA, of image and text and of English and text.
    """
    langs = [name for name in features if name != IMAGE]
    image = features[IMAGE]
    languages: dict[str, dict[str, Any]] = {
        lang: {
            "centroid_distance": centroid_distance(image[0], features[lang][0]),
            "separability": separability(image[0], features[lang][0], seed),
        }
        for lang in langs
    }
    by_layer: list[dict[str, Any]] = [
        {
            "layer": layer,
            "languages": {
                lang: _alignment({name: x[place] for name, x in features.items()}, lang)
                for lang in langs
            },
        }
        for place, layer in enumerate(layers)
    ]
    others = [lang for lang in langs if lang != ENGLISH]
    # over languages without English, at layer 0
    rows = [
        {
            "relative_centroid_distance": languages[lang]["centroid_distance"]["relative"],
            "separability": languages[lang]["separability"],
            **by_layer[0]["languages"][lang],
        }
        for lang in others
    ]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
    return {"languages": languages, "layers": by_layer, "mean": mean}


def _alignment(features: Mapping[str, Features], lang: str) -> dict[str, float]:
    """Returns how well texts of a language match images, and English texts, in one layer."""
    text, image, english = features[lang], features[IMAGE], features.get(ENGLISH)
    found = {
        "image_to_text_recall_at_1": recall_at_1(image, text),
        "text_to_image_recall_at_1": recall_at_1(text, image),
        "image_cka": linear_cka(image, text),
    }
    if english is not None and lang != ENGLISH:
        found |= {
            "to_english_recall_at_1": recall_at_1(text, english),
            "from_english_recall_at_1": recall_at_1(english, text),
            "english_cka": linear_cka(english, text),
        }
    return found


MAX_LAYERS: Final = 9
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Samples:
    """Images with the same text in several languages.

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
    """Draws rows that have an image and accepted texts in all languages; no image or text twice.

    An image or an English text that was drawn before is left out: the right text could not be
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
    left_out: Counter[str] = Counter()
    chosen: dict[tuple[Path, ...], tuple[int, dict[str, str]]] = {}
    seen_texts: set[str] = set()
    for index in Permutation(len(corpus), (seed, 0)):
        images = corpus.image_paths(index)
        turns = {lang: corpus.turns(lang, index) for lang in languages}
        found = {lang: _text_of(own) for lang, own in turns.items() if own is not None}
        reasons = {
            "no image": not images,
            "several images": len(images) > 1,
            "not in every language": len(found) < len(languages),
            "image drawn before": images[:1] in chosen,
            "text drawn before": found.get(ENGLISH) in seen_texts,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            left_out[reason] += 1
            continue
        chosen[images] = index, found
        seen_texts.add(found[ENGLISH])
        if len(chosen) == num:
            break
    if len(chosen) < 10:
        raise DataError(
            f"{corpus.path}: {len(chosen)} usable rows, expected 10 or more: {dict(left_out)}"
        )
    texts = {lang: tuple(found[lang] for _, found in chosen.values()) for lang in languages}
    rows = tuple(index for index, _ in chosen.values())
    return Samples(rows, tuple(path for (path,) in chosen), texts, dict(left_out))


def _text_of(turns: Sequence[Turn]) -> str:
    """Returns question and answer without the image token."""
    return "\n".join(turn.text.replace(DEFAULT_IMAGE_TOKEN, "").strip() for turn in turns)


class FeatureExtractor:
    """Turns images and texts into means of hidden states, with a loaded model.

    Args:
        model_path: A checkpoint in LLaVA's format.
        model_base: The base model of a LoRA or projector-only checkpoint.
        layers: Which; None for at most nine, evenly spaced. 0 is the input.
        device: By default a GPU where there is one.

    Raises:
        CheckpointError: The model takes no images.
        ConfigError: There is no such layer.
    """

    def __init__(
        self,
        model_path: Path,
        model_base: str | None = None,
        layers: Sequence[int] | None = None,
        device: str | None = None,
    ) -> None:
        parts = load_with_tower(model_path, model_base, device)
        self._tokenizer, self._model, self._image_processor = parts
        last = int(self._model.config.num_hidden_layers)
        self.layers = tuple(layers) if layers is not None else spaced_layers(last)
        if self.layers[0] != 0 or any(not 0 <= layer <= last for layer in self.layers):
            raise ConfigError(f"--layers {self.layers}: expected 0 and others up to {last}")

    @torch.inference_mode()
    def images(self, paths: Sequence[Path]) -> Features:
        """Returns means over patches: [L, B, D]."""
        images = [open_image(path) for path in paths]
        pixels = process_images(images, self._image_processor, self._model.config)
        place = {"device": self._model.device, "dtype": self._model.dtype}
        rows = [
            self._model.encode_images((x if x.ndim == 4 else x[None]).to(**place)).flatten(0, 1)
            for x in pixels
        ]
        return self._means(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Returns means over tokens: [L, B, D].

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

    def _means(self, rows: Sequence[Tensor]) -> Features:
        """Runs rows [T_i, D] through the language model, padded on the right."""
        begin = self._tokenizer.bos_token_id
        prefix = [] if begin is None else [begin]
        if prefix:
            rows = [torch.cat([self._embed(prefix), row]) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        states = [torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)]
        place = torch.arange(states[0].shape[1], device=rows[0].device)
        mask = place[None] < lengths[:, None]
        if self.layers[-1] > 0:
            states = self._model.get_model()(
                inputs_embeds=states[0], attention_mask=mask.long(), output_hidden_states=True,
                use_cache=False,
            ).hidden_states  # fmt: skip
        counted = (mask & (place[None] >= len(prefix)))[..., None]
        means = [
            (states[layer].float() * counted).sum(dim=1) / counted.sum(dim=1)
            for layer in self.layers
        ]
        return torch.stack(means).cpu().numpy()


def spaced_layers(last: int) -> tuple[int, ...]:
    """Returns at most nine layers from the input to the last, evenly spaced."""
    return tuple(sorted({round(x) for x in np.linspace(0, last, min(MAX_LAYERS, last + 1))}))


def extract(extractor: FeatureExtractor, samples: Samples, batch_size: int) -> dict[str, Features]:
    """Returns features by `image` and language, [L, N, D], batch by batch.

    Args:
        extractor: The model.
        samples: The samples.
        batch_size: Images or texts at once.

    Raises:
        DataError: A feature is not a finite number.
    """
    starts = range(0, len(samples.rows), batch_size)
    sources: dict[str, tuple[Callable[[Any], Features], Sequence[Any]]] = {
        IMAGE: (extractor.images, samples.images),
        **{lang: (extractor.texts, texts) for lang, texts in samples.texts.items()},
    }
    features: dict[str, Features] = {}
    with Progress("features", len(starts) * len(sources), "batches") as progress:
        for name, (extract_batch, inputs) in sources.items():
            parts = []
            for start in starts:
                parts.append(extract_batch(inputs[start : start + batch_size]))
                progress.advance()
            features[name] = np.concatenate(parts, axis=1)
            if not np.isfinite(features[name]).all():
                raise DataError(
                    f"features of {name} are not finite: the model computes NaN or infinity"
                )
    return features


def save_features(path: Path, features: dict[str, Features], about: dict[str, Any]) -> None:
    """Writes features and what they are of; `path` ends with .npz."""
    content: dict[str, Any] = {f"features_{name}": array for name, array in features.items()}
    content["about"] = np.array(json.dumps({"format_version": FORMAT_VERSION, **about}))
    # an open file: to a name without its ending, numpy would add one
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)


def load_features(path: Path) -> tuple[dict[str, Features], dict[str, Any]]:
    """Reads what `save_features` wrote.

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
        version = about["format_version"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a file of features ({error!r}); `lrm modality-gap MODEL --out "
            "FILE.npz` makes one"
        ) from error
    if version != FORMAT_VERSION or IMAGE not in features:
        raise DataError(f"{path}: features of version {version}")
    return features, about


_GRID: Final = 120
# densities of which so much of the mass lies inside, from the outermost
_MASSES: Final = (0.95, 0.75, 0.5, 0.25)
_LOOKS: Final[tuple[tuple[str, str, Any], ...]] = (
    ("images, after the projector", ORANGE, "--"),
    ("texts, as embedded (lines enclose 25, 50, 75 and 95 %)", BLUE, "-"),
)


def gap_table(report: Mapping[str, Any]) -> Table:
    """Makes a table of the numbers of a model."""
    first, last = report["layers"][0], report["layers"][-1]
    number = last["layer"]
    heads = ("language", "apart", "cut %", "image %", "English %", "CKA i", "CKA e",
             f"CKA i{number}", f"CKA e{number}")  # fmt: skip
    rows = []
    for lang, one in report["languages"].items():
        early, late = first["languages"][lang], last["languages"][lang]
        rows.append([
            language_name(lang),
            f"{one['centroid_distance']['relative']:.2f}",
            f"{100 * one['separability']:.1f}",
            f"{100 * early['image_to_text_recall_at_1']:.1f}",
            f"{100 * early['to_english_recall_at_1']:.1f}" if lang != ENGLISH else "-",
            *(
                f"{layer[name]:.3f}" if name in layer else "-"
                for layer in (early, late)
                for name in ("image_cka", "english_cka")
            ),
        ])  # fmt: skip
    return terminal_table(
        f"{report['model']}: images and texts at the input of the language model", heads, rows,
        caption="apart: centroids of images and texts, in spreads; cut: share that a straight "
        "cut tells apart; image, English: the nearest text is that of the image, of the English "
        "text; CKA of texts with images (i) and English (e), at the input and after layer "
        f"{number}",
        caption_justify="left",
    )  # fmt: skip


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Computes t-SNE: [N, D] -> [N, 2]; the same on each run with the same seed."""
    need_scikit_learn()
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(features) - 1) / 3)
    found: NDArray[np.float64] = TSNE(
        n_components=2, init="pca", random_state=seed, perplexity=perplexity
    ).fit_transform(features)
    return found


def modality_figure(
    paths: Sequence[Path], labels: Sequence[str], seed: int = 0, max_points: int = 5_000
) -> Figure:
    """Draws models side by side.

    Args:
        paths: Files of features, as `lrm modality-gap` writes them.
        labels: One a file.
        seed: Of t-SNE, and of which language a sample's text is taken in.
        max_points: Samples of each file that are drawn.

    Raises:
        ConfigError: There is nothing to draw.
        DataError: A file holds no features.
    """
    if not paths:
        raise ConfigError("nothing to draw; name FILE.npz, or LABEL=FILE.npz")
    figure = Figure(figsize=(4.8 * len(paths), 5.4), layout="constrained")
    panels = figure.subplots(1, len(paths), squeeze=False)[0]
    for axes, path, label, letter in zip(panels, paths, labels, "abcdefgh", strict=False):
        features, _ = load_features(path)
        langs = [name for name in features if name != IMAGE]
        num = min(max_points, features[IMAGE].shape[1])
        image = features[IMAGE][0, :num]
        # the text of every sample in one language, all languages equally often
        places = [Permutation(num, (seed, 1))[i] % len(langs) for i in range(num)]
        text = np.stack([features[langs[place]][0, i] for i, place in enumerate(places)])
        _draw(axes, embed(np.concatenate([image, text]), seed), num)
        gap = centroid_distance(image, text)["relative"]
        cut = 100 * separability(image, text, seed)
        axes.set_title(f"({letter}) {label}", fontsize=12)
        axes.set_xlabel(
            f"{num:,} samples, texts in {len(langs)} languages\n"
            f"centroids {gap:.2f} spreads apart; a cut tells {cut:.1f} % apart",
            fontsize=9,
        )
    lines = [Line2D([], [], color=colour, linestyle=style) for _, colour, style in _LOOKS]
    names = [name for name, *_ in _LOOKS]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw(axes: Any, points: NDArray[np.float64], num: int) -> None:
    """Draws points and lines of equal density: `num` images, and as many texts."""
    from scipy.stats import gaussian_kde

    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.3 * (high - low)
    xs, ys = np.linspace(low - margin, high + margin, _GRID).T
    grid = np.stack(np.meshgrid(xs, ys))
    for (_, colour, style), chosen in zip(_LOOKS, (points[:num], points[num:]), strict=True):
        axes.plot(*chosen.T, ".", ms=1.5, alpha=0.15, color=colour, zorder=1)
        density = gaussian_kde(chosen.T)(grid.reshape(2, -1)).reshape(grid.shape[1:])
        levels = _levels(density)
        axes.contour(xs, ys, density, levels=levels, colors=colour, linestyles=style, zorder=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _levels(density: NDArray[np.float64]) -> list[float]:
    """Returns the densities above which a given share of the mass lies, ascending."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    places = np.minimum(np.searchsorted(mass, _MASSES), len(mass) - 1)
    return [float(level) for level in np.unique(ordered[places])]
