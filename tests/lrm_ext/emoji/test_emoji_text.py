"""Sentences of the built-in corpus: complete, parallel, balanced, as a reader reviewed them."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import string
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from fontTools.unicodedata import script as script_of

from llava.errors import ConfigError
from lrm_ext.emoji import scenes as scenes_module
from lrm_ext.emoji.conversations import (
    SceneQuestion,
    benchmark_items,
    caption,
    caption_turns,
    category_question,
    existence_question,
    make_questions,
    noun_phrase,
    question_turns,
    render_question,
    truth,
)
from lrm_ext.emoji.scenes import (
    CONCEPTS_FILE,
    LANGUAGES,
    NUM_PATTERNS,
    POSITIONS,
    Placed,
    Scene,
    available_languages,
    backgrounds,
    categories,
    concept_ids,
    concepts_by_id,
    get_vocabulary,
    load_concepts,
    load_scenes,
    packed_path,
)
from lrm_ext.languages.registry import get_language
from lrm_ext.languages.tags import NEUTRAL_SCRIPTS, SCRIPT_PARTS

GOLDEN = Path(__file__).parents[2] / "golden" / "emoji_sentences.json"
ARTICLES = {"en", "de", "fr", "it", "ro", "es"}


def _single(concept: str, background: str = "red") -> Scene:
    placed = Placed(concept, 0.5, 0.5, 0.6, False)
    return Scene("train-x", "train", background, backgrounds()[background], (placed,))


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, ...]:
    return load_scenes(limit=600)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_sentence_renders(lang: str) -> None:
    sentences = []
    for concept in concept_ids():
        scene = _single(concept)
        for phrasing in range(NUM_PATTERNS["existence"]):
            question = SceneQuestion("existence", concept, phrasing)
            sentences.append(render_question(question, scene, lang)[0])
        sentences.append(render_question(SceneQuestion("naming", None, 0), scene, lang)[1])
        sentences += caption(scene, lang, 0)
    for category in (c for c in categories().values() if c.asked):
        for phrasing in range(NUM_PATTERNS["existence"]):
            question = SceneQuestion("category", category.id, phrasing)
            sentences.append(render_question(question, _single("dog"), lang)[0])
    for background in backgrounds():
        scene = _single("dog", background)
        sentences += [
            *caption(scene, lang, 1),
            *render_question(SceneQuestion("color", None, 1), scene, lang),
        ]
    for sentence in sentences:
        assert sentence == sentence.strip() and "{" not in sentence and "  " not in sentence
        assert not re.search(r" [,.]", sentence), sentence


@pytest.mark.parametrize("lang", LANGUAGES)
def test_names_tell_concepts_apart(lang: str) -> None:
    names = [concepts_by_id()[concept].names[lang] for concept in concept_ids()]
    assert len(set(map(str.lower, names))) == len(names) >= 60
    assert not any(set(name) & set("()[],;:") for name in names)
    captions = {get_vocabulary(lang).color_answers[b] for b in backgrounds()}
    assert len(captions) == len(backgrounds())


@pytest.mark.parametrize("lang", LANGUAGES)
def test_script_and_punctuation(lang: str) -> None:
    patterns = [p for ps in get_vocabulary(lang).questions.values() for p in ps]
    words = patterns + [noun_phrase(concept, lang) for concept in concept_ids()]
    latin = set(string.ascii_letters)
    for text in words:
        letters = set(re.sub(r"\{\w+\}", "", text)) & latin
        assert bool(letters) == (lang not in ("ru", "zh")), text
    questions = [p for p in patterns if p.endswith(("?", "？"))]
    assert len(questions) > 8
    for question in questions:
        assert question.startswith("¿") == (lang == "es")
        assert question.endswith(" ?") == (lang == "fr")
        assert question.endswith("？") == (lang == "zh")
    if lang == "ro":
        assert not set("".join(words)) & set("şţŞŢ")


def test_a_languages_file_corrects_names_of_cldr() -> None:
    packed = json.loads(packed_path(CONCEPTS_FILE).read_text(encoding="utf-8"))
    assert "a" in packed["eggplant"]["sr"]  # Latin
    assert concepts_by_id()["eggplant"].names["sr"] == "патлиџан"
    for lang in available_languages():
        script = get_language(lang).script
        letters = filter(str.isalpha, "".join(each.names.get(lang, "") for each in load_concepts()))
        assert {*map(script_of, letters)} <= SCRIPT_PARTS.get(script, {script}) | NEUTRAL_SCRIPTS


def test_articles_agree_with_the_first_sound() -> None:
    for concept in concept_ids():
        names = concepts_by_id()[concept].names
        english = noun_phrase(concept, "en")
        assert english.startswith("an ") == (names["en"][0] in "aeiou"), english
        italian, first = noun_phrase(concept, "it"), names["it"]
        if italian.startswith("un'"):
            assert first[0] in "aeiou", italian
        elif italian.startswith("una "):
            assert first[0] not in "aeiou", italian
        else:
            assert italian.startswith("uno ") == bool(re.match(r"s[^aeiou]|z|gn|ps|x", first)), (
                italian
            )
    for lang in LANGUAGES:
        assert bool(get_vocabulary(lang).articles) == (lang in ARTICLES)


def test_languages_are_parallel(scenes: tuple[Scene, ...]) -> None:
    for scene in scenes[:100]:
        english = question_turns(scene, "en")
        no, yes = get_language("en").no, get_language("en").yes
        for lang in LANGUAGES[1:]:
            other = question_turns(scene, lang)
            assert [turn.role for turn in other] == [turn.role for turn in english]
            for ours, theirs in zip(english, other, strict=True):
                assert ours.text.count("<image>") == theirs.text.count("<image>")
                assert (ours.text == yes) == (theirs.text == get_language(lang).yes)
                assert (ours.text == no) == (theirs.text == get_language(lang).no)
                if ours.text.isdigit():
                    assert ours.text == theirs.text
            assert len(caption_turns(scene, lang)) == 2


def test_a_conversation_has_four_questions(scenes: tuple[Scene, ...]) -> None:
    for scene in scenes[:100]:
        questions = make_questions(scene, random.Random(scene.id))
        tasks = Counter(question.task for question in questions)
        assert tasks["existence"] == 2
        assert tasks["naming" if len(scene.objects) == 1 else "position"] == 1
        assert tasks["counting"] + tasks["color"] + tasks["category"] == 1
        existence = [truth(q, scene) for q in questions if q.task == "existence"]
        assert sorted(existence) == [False, True]
        assert question_turns(scene, "en")[0].text.startswith("<image>\n")


def test_position_names_what_lies_there() -> None:
    objects = (Placed("dog", 0.2, 0.3, 0.3, False), Placed("key", 0.8, 0.7, 0.3, False))
    scene = Scene("train-x", "train", "red", (214, 52, 48), objects)
    answer = {
        p: render_question(SceneQuestion("position", p, 0), scene, "de")[1]
        for p in ("top_left", "bottom_right")
    }
    assert answer == {"top_left": "Hund", "bottom_right": "Schlüssel"}
    assert caption(scene, "de", 0)[1] == "Ein Hund und ein Schlüssel auf rotem Hintergrund."
    assert set(POSITIONS) >= set(answer)


def test_questions_alone_tell_little() -> None:
    """A model without the picture gets about half of the yes/no questions, for every word."""
    yes: Counter[tuple[str, str | None]] = Counter()
    total: Counter[tuple[str, str | None]] = Counter()
    for scene in load_scenes(limit=12_000):
        if scene.split != "train":
            continue
        rng = random.Random(scene.id)
        for question in (
            existence_question(scene, True, rng),
            existence_question(scene, False, rng),
            category_question(scene, rng),
        ):
            key = (question.task, question.target)
            total[key] += 1
            yes[key] += truth(question, scene)
    assert len(total) == len(concept_ids()) + sum(c.asked for c in categories().values())
    for (task, target), count in total.items():
        assert 0.40 < yes[task, target] / count < 0.60, (task, target)
    guessed = sum(max(yes[key], total[key] - yes[key]) for key in total)
    assert guessed / total.total() < 0.53


def test_unclear_questions_are_never_asked(scenes: tuple[Scene, ...]) -> None:
    for scene in scenes:
        there = {placed.concept for placed in scene.objects}
        rng = random.Random(scene.id)
        absent = existence_question(scene, False, rng).target
        assert absent not in there
        assert {"airplane", "helicopter"} != {absent} | (there & {"airplane", "helicopter"})
        question = category_question(scene, rng)
        if question.target == "plant" and not truth(question, scene):
            assert "food" not in {concepts_by_id()[c].category for c in there}


@pytest.mark.parametrize("split", ["val", "test"])
def test_benchmark_is_balanced_and_large_enough(split: str, scenes: tuple[Scene, ...]) -> None:
    items = benchmark_items(scene for scene in scenes if scene.split == split)
    assert len({item.id for item in items}) == len(items)
    count = Counter(item.question.task for item in items)
    assert count["existence"] >= 400
    assert all(90 <= count[t] <= 110 for t in set(count) - {"existence"}) and len(count) == 6
    answers: dict[str, Counter[bool]] = {}
    for item in items:
        if item.question.answer_type == "yesno":
            key = item.question.task + (
                f"/{item.question.target}" if item.question.task == "category" else ""
            )
            answers.setdefault(key, Counter())[truth(item.question, item.scene)] += 1
    assert all(counter[True] == counter[False] for counter in answers.values()), answers


def test_unknown_language_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="'xx'.*en, cs, de"):
        get_vocabulary("xx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["questions"]["existence"].pop(), "existence.*2 patterns"),
        (lambda d: d["questions"].update(naming=["{thing}?", "What?"]), "placeholders"),
        (lambda d: d["colors"].pop("red"), "colors.*red"),
        (lambda d: d["articles"]["ein "].remove("dog"), "articles.*dog"),
        (lambda d: d["articles"]["eine "].append("dog"), "two articles"),
        (lambda d: d.update(names={"dogs": "Hunde"}), r"scenes\.names\.dogs: there is no such"),
    ],
)
def test_incomplete_language_file_is_refused(change, message, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    german = get_language("de")
    data = copy.deepcopy(dict(german.scenes))
    change(data)
    changed = msgspec.structs.replace(german, scenes=data)
    monkeypatch.setattr(scenes_module, "get_language", lambda code: changed)
    with pytest.raises(ConfigError, match=message):
        get_vocabulary.__wrapped__("de")


def test_reviewed_sentences() -> None:
    """What a reader of each language has accepted; UPDATE_GOLDEN=1 writes it anew for review."""
    found: dict[str, list[list[str]]] = {lang: [] for lang in LANGUAGES}
    for number, scene in enumerate(load_scenes(limit=24)):
        for lang in LANGUAGES:
            if scene.split != "train":
                continue
            found[lang].append(list(caption(scene, lang, number % NUM_PATTERNS["caption"])))
            for question in make_questions(scene, random.Random(number)):
                found[lang].append(list(render_question(question, scene, lang)))
    nouns = {lang: [noun_phrase(c, lang) for c in concept_ids()] for lang in LANGUAGES}
    golden = {"nouns": nouns, "sentences": found}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    assert golden == json.loads(GOLDEN.read_text(encoding="utf-8"))
