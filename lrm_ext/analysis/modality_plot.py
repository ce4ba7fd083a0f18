"""Figure 5: pictures and texts in two dimensions, models side by side, the numbers beneath.

In: files of features. Out: a picture: t-SNE of the mean features at the input of the language
model, drawn as lines of equal density (KDE), pictures in dashes and texts in solid lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from llava.errors import ConfigError
from lrm_ext.analysis.modality import IMAGE, centroid_distance, need_scikit_learn, separability
from lrm_ext.analysis.modality_features import load_features
from lrm_ext.analysis.paper_charts import BLUE, ORANGE
from lrm_ext.analysis.settings import language_name
from lrm_ext.mixture.order import Permutation

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
            _figure(early, "to_english_recall_at_1", 100, 1),
            f"{early['image_cka']:.3f}",
            _figure(early, "english_cka", 1, 3),
            f"{late['image_cka']:.3f}",
            _figure(late, "english_cka", 1, 3),
        )
    return table


def _figure(figures: Mapping[str, float], name: str, factor: int, digits: int) -> str:
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
    figure.legend(*_legend(), loc="outside lower center", ncols=2, frameon=False)
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


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    names = {
        True: "pictures, after the projector",
        False: "texts, as embedded (lines enclose 25, 50, 75 and 95 %)",
    }
    lines = [Line2D([], [], color=_LOOKS[k][0], linestyle=_LOOKS[k][1]) for k in names]
    return lines, list(names.values())
