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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError, ConfigError, DataError
from llava.files import writing
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path, process_images
from lrm_ext.corpus.store import Corpus
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.mixture.order import Permutation
from lrm_ext.report.plots import BLUE, ORANGE
from lrm_ext.report.settings import language_name

Features = NDArray[np.float32]
IMAGE: Final = "image"
NUM_FOLDS: Final = 5
_CHUNK: Final = 512


def need_scikit_learn() -> None:
    """Check that scikit-learn is there, before anything that takes long.

    Raises:
        ConfigError: It is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "scikit-learn is not installed, which separates pictures from texts and draws t-SNE: "
            "pip install 'lrm-llava[figures]'"
        ) from error


def centroid_distance(a: Features, b: Features) -> dict[str, float]:
    """Distance of the means of two sets, also in units of their spread.

    Args:
        a: [N, D].
        b: [M, D].

    Returns:
        `distance`, and `relative`: divided by the root of the mean squared distance of a feature
        from its own mean, averaged over both sets. 0 for sets around the same point.
    """
    means = [x.astype(np.float64).mean(axis=0) for x in (a, b)]
    spread = [
        float(((x - mean) ** 2).sum(axis=1).mean()) for x, mean in zip((a, b), means, strict=True)
    ]
    distance = float(np.linalg.norm(means[0] - means[1]))
    scale = float(np.sqrt(sum(spread) / 2))
    return {"distance": distance, "relative": distance / scale if scale else float("inf")}


def separability(a: Features, b: Features, seed: int = 0) -> float:
    """How often a straight cut tells the two sets apart, on samples that it was not fitted to.

    Five-fold cross-validation of a logistic regression on standardised features; the picture and
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
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert len(a) == len(b) >= NUM_FOLDS
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(a))
    right = 0
    for fold in np.array_split(order, NUM_FOLDS):
        rest = np.setdiff1d(order, fold)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings():
            # sets that a cut separates entirely have no finite optimum
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(np.concatenate([a[rest], b[rest]]), _labels(len(rest)))
        found = model.predict(np.concatenate([a[fold], b[fold]]))
        right += int((found == _labels(len(fold))).sum())
    return right / (2 * len(a))


def _labels(num: int) -> NDArray[np.int64]:
    return np.repeat(np.array([0, 1]), num)


def recall_at_1(queries: Features, targets: Features) -> float:
    """How often the nearest target of a query is that of the same sample.

    Nearest by cosine, after the mean of each set is taken away: a mere shift between the sets is
    what `centroid_distance` tells. Among n equally near ones each counts 1/n.

    Args:
        queries: [N, D].
        targets: [N, D], the same samples in the same order.

    Returns:
        A share; 1/N by chance.
    """
    q, t = _directions(queries), _directions(targets)
    total = 0.0
    for start in range(0, len(q), _CHUNK):
        similarity = q[start : start + _CHUNK] @ t.T
        own = similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))]
        nearest = similarity.max(axis=1)
        ties = (similarity >= nearest[:, None] - 1e-9).sum(axis=1)
        total += float(((own >= nearest - 1e-9) / ties).sum())
    return total / len(q)


def _directions(features: Features) -> NDArray[np.float64]:
    centred = features.astype(np.float64)
    centred -= centred.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    result: NDArray[np.float64] = centred / np.where(norms == 0, 1, norms)
    return result


def linear_cka(a: Features, b: Features) -> float:
    """Linear centred kernel alignment of two features of the same samples.

    1 if one is a rotation and scaling of the other, 0 if they are uncorrelated. With few samples
    and many dimensions it is larger than 0 for noise, too: compare models, at equal N.

    Args:
        a: [N, D].
        b: [N, E].
    """
    x, y = (f.astype(np.float64) - f.mean(axis=0, dtype=np.float64) for f in (a, b))
    if len(x) < max(x.shape[1], y.shape[1]):
        # by Gram matrices, which are smaller then
        grams = [x @ x.T, y @ y.T]
        cross = float((grams[0] * grams[1]).sum())
        norms = [float(np.linalg.norm(gram)) for gram in grams]
    else:
        cross = float(np.linalg.norm(y.T @ x) ** 2)
        norms = [float(np.linalg.norm(f.T @ f)) for f in (x, y)]
    scale = norms[0] * norms[1]
    return cross / scale if scale else 0.0


def measure(
    features: Mapping[str, NDArray[np.float32]], layers: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """All numbers of one model.

    Args:
        features: By `image` and language, [L, N, D].
        layers: Which layers they are of; the first is 0.
        seed: Of the folds.

    Returns:
        `languages`: per language the distance and separability of pictures and texts at layer 0;
        `layers`: per layer recall at 1 and CKA, of picture and text and of English and text.
    """
    langs = [name for name in features if name != IMAGE]
    image = features[IMAGE]
    languages = {
        lang: {
            "centroid_distance": centroid_distance(image[0], features[lang][0]),
            "separability": separability(image[0], features[lang][0], seed),
        }
        for lang in langs
    }
    by_layer: list[dict[str, Any]] = []
    for place, layer in enumerate(layers):
        one: dict[str, Any] = {"layer": layer, "languages": {}}
        english = features[ENGLISH][place] if ENGLISH in features else None
        for lang in langs:
            text = features[lang][place]
            figures = {
                "image_to_text_recall_at_1": recall_at_1(image[place], text),
                "text_to_image_recall_at_1": recall_at_1(text, image[place]),
                "image_cka": linear_cka(image[place], text),
            }
            if english is not None and lang != ENGLISH:
                figures["to_english_recall_at_1"] = recall_at_1(text, english)
                figures["from_english_recall_at_1"] = recall_at_1(english, text)
                figures["english_cka"] = linear_cka(english, text)
            one["languages"][lang] = figures
        by_layer.append(one)
    return {"languages": languages, "layers": by_layer, "mean": _means(languages, by_layer)}


def _means(
    languages: Mapping[str, Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Over languages without English, at layer 0."""
    others = [lang for lang in languages if lang != ENGLISH]
    if not others:
        return {}
    first = layers[0]["languages"]
    means = {
        "relative_centroid_distance": np.mean(
            [languages[lang]["centroid_distance"]["relative"] for lang in others]
        ),
        "separability": np.mean([languages[lang]["separability"] for lang in others]),
    }
    for name in first[others[0]]:
        means[name] = np.mean([first[lang][name] for lang in others])
    return {name: float(value) for name, value in means.items()}


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


_GRID: Final = 120
# densities of which so much of the mass lies inside, from the outermost
_MASSES: Final = (0.95, 0.75, 0.5, 0.25)
_LOOKS: Final[dict[bool, tuple[str, Any]]] = {True: (ORANGE, "--"), False: (BLUE, "-")}


def gap_table(report: Mapping[str, Any]) -> Table:
    """The numbers of a model for the terminal."""
    first, last = report["layers"][0], report["layers"][-1]
    table = Table(
        title=f"{report['model']}: pictures and texts at the input of the language model",
        caption="apart: centroids of pictures and texts, in spreads; cut: share that a straight "
        "cut tells apart; image, English: the nearest text is that of the picture, of the English "
        "text; CKA of texts with images (i) and English (e), at the input and after layer "
        f"{last['layer']}",
        box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", show_edge=False,
        padding=(0, 1),
    )  # fmt: skip
    table.add_column("language", no_wrap=True)
    number = last["layer"]
    heads = ("apart", "cut %", "image %", "English %", "CKA i", "CKA e", f"CKA i{number}",
             f"CKA e{number}")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for lang, one in report["languages"].items():
        early, late = first["languages"][lang], last["languages"][lang]
        table.add_row(
            language_name(lang),
            f"{one['centroid_distance']['relative']:.2f}",
            f"{100 * one['separability']:.1f}",
            f"{100 * early['image_to_text_recall_at_1']:.1f}",
            _cell(early, "to_english_recall_at_1", 100, 1),
            f"{early['image_cka']:.3f}",
            _cell(early, "english_cka", 1, 3),
            f"{late['image_cka']:.3f}",
            _cell(late, "english_cka", 1, 3),
        )
    return table


def _cell(figures: Mapping[str, float], name: str, factor: int, digits: int) -> str:
    return f"{factor * figures[name]:.{digits}f}" if name in figures else "-"


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """t-SNE: [N, D] -> [N, 2]; the same on each run with the same seed."""
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
    """Draw models side by side.

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
    parts = figure.subplots(1, len(paths), squeeze=False)[0]
    for axes, path, label, letter in zip(parts, paths, labels, "abcdefgh", strict=False):
        features, about = load_features(path)
        langs = [name for name in features if name != IMAGE]
        num = min(max_points, features[IMAGE].shape[1])
        image = features[IMAGE][0, :num]
        text = _one_language_each(features, langs, num, seed)
        points = embed(np.concatenate([image, text]), seed)
        _draw(axes, points, num)
        gap = centroid_distance(image, text)["relative"]
        cut = 100 * separability(image, text, seed)
        axes.set_title(f"({letter}) {label}", fontsize=12)
        axes.set_xlabel(
            f"{num:,} samples, texts in {len(langs)} languages\n"
            f"centroids {gap:.2f} spreads apart; a cut tells {cut:.1f} % apart",
            fontsize=9,
        )
    figure.legend(*_legend_of_figure(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _one_language_each(
    features: Mapping[str, NDArray[np.float32]], langs: Sequence[str], num: int, seed: int
) -> NDArray[np.float32]:
    """The text of every sample in one language, all languages equally often."""
    places = [Permutation(num, (seed, 1))[i] % len(langs) for i in range(num)]
    return np.stack([features[langs[place]][0, i] for i, place in enumerate(places)])


def _draw(axes: Any, points: NDArray[np.float64], num: int) -> None:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.3 * (high - low)
    xs, ys = (
        np.linspace(low[i] - margin[i], high[i] + margin[i], _GRID) for i in range(2)
    )  # fmt: skip
    grid = np.stack(np.meshgrid(xs, ys))
    for is_image, chosen in ((True, points[:num]), (False, points[num:])):
        colour, style = _LOOKS[is_image]
        axes.plot(*chosen.T, ".", ms=1.5, alpha=0.15, color=colour, zorder=1)
        density = _density(chosen, grid)
        levels = _levels(density)
        axes.contour(xs, ys, density, levels=levels, colors=colour, linestyles=style, zorder=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _density(points: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import gaussian_kde

    found: NDArray[np.float64] = gaussian_kde(points.T)(grid.reshape(2, -1)).reshape(grid.shape[1:])
    return found


def _levels(density: NDArray[np.float64]) -> list[float]:
    """Densities above which a given share of the mass lies, ascending."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    found = [float(ordered[min(int(np.searchsorted(mass, m)), len(mass) - 1)]) for m in _MASSES]
    return sorted(set(found))


def _legend_of_figure() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    names = {
        True: "pictures, after the projector",
        False: "texts, as embedded (lines enclose 25, 50, 75 and 95 %)",
    }
    lines = [Line2D([], [], color=_LOOKS[k][0], linestyle=_LOOKS[k][1]) for k in names]
    return lines, list(names.values())
