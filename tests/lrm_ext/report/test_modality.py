"""Numbers of the modality gap on features whose answer is known, and features of a tiny model."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from llava.errors import ConfigError, DataError
from lrm_ext.report.modality import (
    IMAGE,
    FeatureExtractor,
    centroid_distance,
    linear_cka,
    load_features,
    measure,
    recall_at_1,
    save_features,
    separability,
    spaced_layers,
)

pytest.importorskip("sklearn")

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"


def noise(seed, n=200, d=8):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def rotation(seed, d=8):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0].astype(np.float32)


def test_centroids_of_two_points_are_three_four_five():
    a = np.array([[0, 1], [0, -1]], dtype=np.float32)
    b = a + np.array([3, 4], dtype=np.float32)
    found = centroid_distance(a, b)
    # the spread of both is 1
    assert found["distance"] == pytest.approx(5) and found["relative"] == pytest.approx(5)
    assert centroid_distance(a, a)["relative"] == 0
    assert centroid_distance(a[:1], b[:1])["relative"] == float("inf")


def test_a_cut_tells_shifted_sets_apart_and_equal_ones_not():
    a, b = noise(0), noise(1)
    assert separability(a, b + 10) == 1
    assert 0.4 < separability(a, b) < 0.6
    assert separability(a, b, seed=3) == separability(a, b, seed=3)


def test_recall_finds_pairs_whatever_the_shift_and_counts_ties():
    a = noise(0)
    assert recall_at_1(a, 3 * a + 7) == 1
    assert recall_at_1(a, np.roll(a, 1, axis=0)) == 0
    # every text twice: one of two equally near ones is right
    twice = np.repeat(a[:50], 2, axis=0)
    assert recall_at_1(twice, twice) == pytest.approx(0.5)
    assert recall_at_1(np.ones((20, 4), np.float32), a[:20, :4]) == pytest.approx(1 / 20)


def test_cka_is_one_for_a_rotation_and_small_for_noise():
    a = noise(0, n=2000)
    assert linear_cka(a, 5 * a @ rotation(2) + 1) == pytest.approx(1, abs=1e-5)
    assert linear_cka(a, noise(1, n=2000)) < 0.02
    # by Gram matrices, where samples are few, the same
    few, other = noise(3, n=6, d=16), noise(4, n=6, d=16)
    centred = [x - x.mean(axis=0) for x in (few, other)]
    cross = np.linalg.norm(centred[1].T @ centred[0]) ** 2
    scale = np.linalg.norm(centred[0].T @ centred[0]) * np.linalg.norm(centred[1].T @ centred[1])
    assert linear_cka(few, other) == pytest.approx(cross / scale, rel=1e-4)
    assert linear_cka(np.ones((5, 2), np.float32), a[:5]) == 0


def test_all_numbers_of_a_model_with_a_gap_that_closes():
    image, text = noise(0), noise(1)
    features = {
        IMAGE: np.stack([image + 9, text]),
        "en": np.stack([text, text]),
        "cs": np.stack([text @ rotation(5), text]),
    }
    report = measure(features, [0, 4])
    assert report["languages"]["cs"]["separability"] == 1
    first, last = report["layers"]
    assert (first["layer"], last["layer"]) == (0, 4)
    assert last["languages"]["cs"]["image_to_text_recall_at_1"] == 1
    assert first["languages"]["cs"]["image_to_text_recall_at_1"] < 0.1
    assert first["languages"]["cs"]["english_cka"] == pytest.approx(1, abs=1e-4)
    assert first["languages"]["cs"]["to_english_recall_at_1"] < 0.2
    assert "english_cka" not in first["languages"]["en"]
    assert report["mean"]["separability"] == 1


def test_features_are_read_back_and_something_else_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    features = {IMAGE: noise(0)[None], "en": noise(1)[None]}
    save_features(path, features, {"model": "m"})
    found, about = load_features(path)
    assert about["model"] == "m" and set(found) == {IMAGE, "en"}
    assert np.array_equal(found["en"], features["en"])
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DataError, match="modality-gap"):
        load_features(path)


def test_the_figure_names_models_and_repeats_exactly(tmp_path):
    from lrm_ext.report.modality import embed, modality_figure

    points = noise(0, n=40)
    assert np.array_equal(embed(points, 0), embed(points, 0))
    path = tmp_path / "x.npz"
    features = {IMAGE: noise(0, n=40)[None], "en": noise(1, n=40)[None], "cs": noise(2, n=40)[None]}
    save_features(path, features, {"model": "m"})
    figure = modality_figure([path, path], ["English only", "all"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["(a) English only", "(b) all"]
    assert "40 samples, texts in 2 languages" in figure.axes[0].get_xlabel()
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == "images, after the projector"


def test_layers_are_spaced_evenly():
    assert spaced_layers(4) == (0, 1, 2, 3, 4)
    assert spaced_layers(32) == (0, 4, 8, 12, 16, 20, 24, 28, 32)


def test_features_of_a_model_do_not_depend_on_the_batch(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODELS / "tiny-clip", tmp_path / "tiny-clip")
    shutil.copytree(MODELS / "tiny-llava", model)
    extractor = FeatureExtractor(model, device="cpu")
    texts = ("What is this?", "A red bird on a long branch of a tree")
    together = extractor.texts(texts)
    apart = np.concatenate([extractor.texts([text]) for text in texts], axis=1)
    assert together.shape[:2] == (len(extractor.layers), 2)
    assert np.allclose(together, apart, atol=1e-4)
    images = [MODELS / "image0.png", MODELS / "image1.png"]
    seen = extractor.images(images)
    assert np.allclose(seen, np.concatenate([extractor.images([i]) for i in images], 1), atol=1e-4)
    # layer 0 is the mean of the embedded tokens, the first of the text left out
    ids = extractor._tokenizer(texts[0], add_special_tokens=False).input_ids
    rows = extractor._model.get_input_embeddings().weight[ids].detach().numpy()
    assert np.allclose(together[0, 0], rows.mean(axis=0), atol=1e-5)
    with pytest.raises(DataError, match="0 tokens"):
        extractor.texts([""])
    with pytest.raises(ConfigError, match="--layers"):
        FeatureExtractor(model, layers=[0, 99], device="cpu")
