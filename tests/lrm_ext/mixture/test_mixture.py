from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.sample import Sample, Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.mixture import Draw, LanguageMixSampler, Mixture, MixtureSpec
from lrm_ext.mixture.table import make_table, simulate

LANGUAGES = ("cs", "de", "hr")
NUM_ROWS = 60


def turns(lang: str, i: int) -> tuple[Turn, ...]:
    return (Turn("human", f"<image>\n{lang} question {i}?"), Turn("gpt", f"{lang} answer {i}"))


def write(path: Path, missing: bool) -> Corpus:
    """With `missing`: row 0 is untranslatable, and Croatian has every third row only."""
    with CorpusWriter(path, [*LANGUAGES, "ru"]) as writer:
        for i in range(NUM_ROWS):
            row = CorpusRow(
                f"r{i}", f"{i}.jpg", "unit", "vqa", i > 0 or not missing, turns("en", i)
            )
            texts = {lang: CorpusText(turns(lang, i)) for lang in LANGUAGES}
            if missing and i % 3:
                texts["hr"] = CorpusText(turns("hr", i), "suspect")
            writer.append(row, texts)
    return Corpus.open(path)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write(tmp_path_factory.mktemp("full") / "corpus", missing=False)


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write(tmp_path_factory.mktemp("gappy") / "corpus", missing=True)


def spec(**data: object) -> MixtureSpec:
    return MixtureSpec.from_dict({"languages": dict.fromkeys(LANGUAGES, 1), **data})


def epoch(mixture: Mixture, number: int = 0) -> Iterator[Draw]:
    return (mixture.draw(i, number) for i in range(len(mixture)))


def test_every_english_row_once_and_one_twin_each(full: Corpus) -> None:
    mixture = Mixture(spec(), full)
    for number in range(4):
        draws = list(epoch(mixture, number))
        english = [d for d in draws if d.lang == "en"]
        assert sorted(d.row for d in english) == list(range(NUM_ROWS))
        assert all(d.instruction == "mvqa" and d.direction is None for d in english)
        assert sorted(d.row for d in draws if d.lang != "en") == list(range(NUM_ROWS))
        assert Counter(d.lang for d in draws) == {"en": 60, "cs": 20, "de": 20, "hr": 20}
        assert Counter(d.instruction for d in draws if d.lang != "en") == dict.fromkeys(
            ("mvqa", "epvqa", "bvqa"), 20
        )
        assert Counter(d.direction for d in draws) == {None: 100, "to_en": 10, "from_en": 10}


def test_a_language_sees_all_its_rows_over_the_epochs(full: Corpus) -> None:
    mixture = Mixture(spec(), full)
    czech = [d.row for number in range(3) for d in epoch(mixture, number) if d.lang == "cs"]
    assert sorted(czech) == list(range(NUM_ROWS))


def test_only_usable_rows_are_drawn_and_repeat_evenly(gappy: Corpus) -> None:
    mixture = Mixture(spec(languages={"hr": 1}), gappy)
    rows = Counter(d.row for d in epoch(mixture) if d.lang == "hr")
    assert sorted(rows) == list(range(3, NUM_ROWS, 3))  # 0 is untranslatable
    assert sum(rows.values()) == NUM_ROWS
    assert max(rows.values()) - min(rows.values()) <= 1
    assert simulate(mixture, [0])[1].num_rows == 19


def test_no_repetition_while_possible(gappy: Corpus) -> None:
    mixture = Mixture(spec(languages={"hr": 1, "de": 2}, non_english_ratio=0.9), gappy)
    for number in range(5):
        for lang, count in (("hr", 18), ("de", 36)):
            rows = [d.row for d in epoch(mixture, number) if d.lang == lang]
            assert len(rows) == len(set(rows)) == count


def test_epochs_and_seeds_differ_and_repeat(full: Corpus) -> None:
    mixture = Mixture(spec(), full)
    first = list(epoch(mixture))
    assert first == list(epoch(Mixture(spec(), full)))
    assert first != list(epoch(mixture, 1))
    assert first != list(epoch(Mixture(spec(seed=1), full)))
    assert first == list(epoch(mixture))  # after another epoch was asked for
    assert first == list(epoch(pickle.loads(pickle.dumps(mixture))))


def test_first_draws_are_fixed(full: Corpus) -> None:
    """What a run that is resumed sees next; see `spec.SCHEME_VERSION`."""
    mixture = Mixture(spec(), full)
    assert [tuple(vars(mixture.draw(i)).values()) for i in range(6)] == GOLDEN_DRAWS


GOLDEN_DRAWS: list[tuple[int, str, str, str | None]] = [
    (25, "cs", "bvqa", "from_en"),
    (47, "en", "mvqa", None),
    (11, "en", "mvqa", None),
    (28, "hr", "mvqa", None),
    (33, "cs", "bvqa", "from_en"),
    (2, "en", "mvqa", None),
]


@settings(max_examples=25, deadline=None)
@given(
    ratio=st.sampled_from([0, 0.4, 0.7, 1.0, 1.5, 3]),
    weights=st.dictionaries(st.sampled_from(LANGUAGES), st.integers(1, 9), min_size=1),
    instructions=st.dictionaries(
        st.sampled_from(["mvqa", "epvqa", "bvqa"]), st.integers(1, 9), min_size=1
    ),
    number=st.integers(0, 5),
)
def test_what_is_drawn_is_what_the_table_says(
    gappy: Corpus,
    ratio: float,
    weights: dict[str, int],
    instructions: dict[str, int],
    number: int,
) -> None:
    mixture = Mixture(
        spec(non_english_ratio=ratio, languages=weights, instructions=instructions), gappy
    )
    draws = list(epoch(mixture, number))
    drawn = Counter((d.lang, d.instruction) for d in draws)
    table = make_table(mixture)
    assert {(row.lang, row.instruction): row.count for row in table if row.count} == drawn
    assert sum(row.count for row in table) == len(mixture) == NUM_ROWS + round(ratio * NUM_ROWS)
    for each in simulate(mixture, [number]):
        assert len({d.row for d in draws if d.lang == each.lang}) == each.num_rows


def test_english_only(full: Corpus) -> None:
    mixture = Mixture(spec(non_english_ratio=0, languages={"ru": 1}), full)
    assert {d.lang for d in epoch(mixture)} == {"en"}
    assert [row.lang for row in make_table(mixture)] == ["en"]


def test_samples_are_formatted(full: Corpus) -> None:
    mixture = Mixture(spec(), full)
    for i in range(len(mixture)):
        draw, sample = mixture.draw(i), mixture.sample(i)
        assert sample.image == f"{draw.row}.jpg"
        asking = "en" if draw.direction == "from_en" else draw.lang
        assert sample.turns[0].text.startswith(f"<image>\n{asking} question {draw.row}?")
        assert sample.lang == ("en" if draw.direction == "to_en" else draw.lang)


def test_lengths_are_measured_when_asked_for(full: Corpus) -> None:
    assert make_table(Mixture(spec(), full))[0].tokens is None
    measured: list[str | None] = []

    def count_tokens(sample: Sample) -> int:
        measured.append(sample.lang)
        return len(sample.turns) * 10

    table = make_table(Mixture(spec(), full), count_tokens, num_measured=7)
    assert [row.tokens for row in table] == [20.0] * len(table)
    assert measured[:8].count("en") == 7
    assert table[0].characters == pytest.approx(
        len("<image>\nen question 10?" + "en answer 10"), abs=1
    )


def test_language_without_text_is_refused_with_the_sums(full: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"no usable text in ru.*60 non-Eng.*cs 60, ru 0"):
        Mixture(spec(languages={"cs": 1, "ru": 1}), full)
    with pytest.raises(ConfigError, match=r"no usable text in fr.*fr 0"):
        Mixture(spec(languages={"fr": 1}), full)
    with pytest.raises(ConfigError, match="no usable text in ru"):
        Mixture(MixtureSpec(), full)  # all languages of the corpus: one of them is empty


def test_empty_corpus_is_refused(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c", ["cs"]):
        pass
    with pytest.raises(ConfigError, match="no rows"):
        Mixture(MixtureSpec(), Corpus.open(tmp_path / "c"))


@pytest.mark.parametrize("index", [-1, 120])
def test_out_of_range(full: Corpus, index: int) -> None:
    with pytest.raises(IndexError):
        Mixture(spec(), full).draw(index)


def test_sampler_has_exact_shares_and_resumes() -> None:
    langs = ["en"] * 40 + ["cs"] * 50 + ["hr"] * 6
    sampler = LanguageMixSampler(langs, MixtureSpec.from_dict({"languages": {"cs": 3, "hr": 1}}))
    first = list(sampler)
    assert len(sampler) == len(first) == 80
    assert sorted(first)[:40] == list(range(40))
    assert Counter(langs[i] for i in first) == {"en": 40, "cs": 30, "hr": 10}
    assert max(Counter(i for i in first if langs[i] == "cs").values()) == 1
    assert sorted(Counter(i for i in first if langs[i] == "hr").values()) == [1, 1, 2, 2, 2, 2]
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    resumed = LanguageMixSampler(langs, MixtureSpec(), epoch=1, start=3)
    whole = LanguageMixSampler(langs, MixtureSpec(), epoch=1)
    resumed.set_epoch(1)  # what a trainer does; it must not go back to the start
    assert list(resumed) == list(whole)[3:]
    assert len(resumed) == 77
    resumed.set_epoch(2)
    assert len(resumed) == 80


def test_sampler_refuses_what_it_cannot_mix() -> None:
    with pytest.raises(ConfigError, match="no English item among 1"):
        LanguageMixSampler(["cs"], MixtureSpec())
    with pytest.raises(ConfigError, match=r"no item in hr.*cs 1, hr 0"):
        LanguageMixSampler(["en", "cs"], MixtureSpec.from_dict({"languages": {"cs": 1, "hr": 1}}))
    with pytest.raises(ConfigError, match="none besides English"):
        LanguageMixSampler(["en"], MixtureSpec())
    english = MixtureSpec.from_dict({"non_english_ratio": 0})
    assert list(LanguageMixSampler(["en"], english)) == [0]
