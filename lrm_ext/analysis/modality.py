"""Numbers about the gap between pictures and texts in a model (the paper's Figure 5, measured).

In: for the same samples the mean feature of the picture (after the projector) and of the text in
each language, [N, D], on some layers of the language model; layer 0 is what goes into it. Out: the
distance of the centroids, how well a straight cut separates both, whether the nearest text of
another language (or of a picture) is the right one, and CKA. None depends on t-SNE. Pure numpy,
but for the cut, which is scikit-learn's logistic regression.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llava.errors import ConfigError
from lrm_ext.evaluation.report import ENGLISH

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
