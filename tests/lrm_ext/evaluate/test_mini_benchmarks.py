"""The small benchmarks: balanced, solvable, the same in every language, read like official ones."""

from collections import Counter

import pytest

from lrm_ext.emoji import unpack as emoji
from lrm_ext.emoji.scenes import load_scenes
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.mini import MINI
from lrm_ext.evaluate.reading import text_key
from lrm_ext.evaluate.registry import BENCHMARKS, ensure_mini, missing_images, open_folder
from lrm_ext.evaluate.scoring import score_benchmark
from lrm_ext.languages import get_language


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return emoji.unpack(tmp_path_factory.mktemp("mini") / "corpus", limit=60)


@pytest.fixture(scope="module")
def benchmarks(corpus):
    return {name: open_folder(name, ensure_mini(name, corpus)) for name in MINI}


def test_they_are_registered():
    assert MINI.keys() <= set(BENCHMARKS)


@pytest.mark.parametrize("name", MINI)
def test_every_language_has_the_same_questions_and_pictures(benchmarks, name):
    benchmark = benchmarks[name]
    assert benchmark.kind == MINI[name].kind
    assert set(benchmark.languages()) == set(emoji.LANGUAGES)
    golds = set()
    for lang in benchmark.languages():
        items = benchmark.read(lang)
        golds.add(tuple((item.question_id, item.image, item.answer) for item in items))
        assert all(item.text == item.question for item in items), "as the corpus trains it"
        assert "{" not in "".join(item.text for item in items)
    assert len(golds) == 1
    assert missing_images(benchmark, items) == []


@pytest.mark.parametrize("name", MINI)
@pytest.mark.parametrize("lang", ["en", "cs", "ru", "zh"])
def test_right_answers_get_all_points_and_constant_ones_few(benchmarks, name, lang):
    benchmark, kind = benchmarks[name], get_kind(MINI[name].kind)
    items = benchmark.read(lang)
    language = get_language(lang)
    right = {
        i.question_id: (
            i.lettered()[i.answer]
            if i.answer_type == "letter"
            else (language.yes if i.answer.lower() == "yes" else language.no)
        )
        for i in items
    }
    best = score_benchmark(kind, items, right, lang=lang, mode="local")
    top = best.details.get("maximum_perception", kind.maximum)
    assert best.headline == pytest.approx(top)
    constant = dict.fromkeys(right, language.yes if items[0].answer_type == "yesno" else "B")
    assert score_benchmark(kind, items, constant, lang=lang).headline < 0.7 * top


def test_yes_and_no_are_balanced(benchmarks):
    for name in ("mini-mme", "mini-pope"):
        counts = Counter((i.category, i.answer.lower()) for i in benchmarks[name].read("en"))
        for category, _ in counts:
            assert counts[category, "yes"] == counts[category, "no"]


def test_options_differ_in_every_language(benchmarks):
    for name in ("mini-seed_bench", "mini-mmbench"):
        for lang in benchmarks[name].languages():
            for item in benchmarks[name].read(lang):
                assert len({text_key(text) for text in item.options}) == len(item.options)


def test_letters_are_spread_and_rotations_whole(benchmarks):
    letters = Counter(item.answer for item in benchmarks["mini-seed_bench"].read("en"))
    assert set(letters) == set("ABCD") and max(letters.values()) < 2 * min(letters.values())
    items = benchmarks["mini-mmbench"].read("en")
    assert {len(item.options) for item in items} == {2, 3, 4}
    for group in {item.group for item in items}:
        rows = [item for item in items if item.group == group]
        assert {row.lettered()[row.answer] for row in rows} == {rows[0].lettered()[rows[0].answer]}


def test_pictures_are_test_scenes(benchmarks):
    scenes = {scene.id: scene for scene in load_scenes()}
    for item in benchmarks["mini-pope"].read("en"):
        scene = scenes[item.image.split("/")[1].removesuffix(".jpg")]
        assert scene.split == "test"


def test_made_once(benchmarks, corpus, monkeypatch):
    from lrm_ext.evaluate import registry

    monkeypatch.setattr(registry, "_make_mini", lambda *_: pytest.fail("made again"))
    ensure_mini("mini-mme", corpus)
