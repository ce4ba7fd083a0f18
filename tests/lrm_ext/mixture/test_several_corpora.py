"""Several corpora in one mixture: exact counts, rows of the right corpus, one numbering."""

from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from lrm_ext.corpus.store import Corpus, CorpusRow, CorpusText, JoinedCorpus, parts_of
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.mixture import Mixture, MixtureSpec
from lrm_ext.mixture.table import simulate

# rows, and in which languages; every fourth of them is not translatable in "gappy"
CORPORA = {"big": (48, ("cs", "hr")), "gappy": (20, ("cs",)), "tiny": (7, ("hr", "de"))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    for name, (num_rows, languages) in CORPORA.items():
        with CorpusWriter(root / name, languages, image_root=f"{name}_images") as writer:
            for i in range(num_rows):
                said = {
                    lang: (Turn("human", f"{name} {lang} {i}?"), Turn("gpt", "A"))
                    for lang in ("en", *languages)
                }
                row = CorpusRow(
                    f"{name}{i}", f"{i}.jpg", name, None, name != "gappy" or i % 4 > 0, said["en"]
                )
                writer.append(row, {lang: CorpusText(said[lang]) for lang in languages})
    return root


def open_mixture(root: Path, *corpora: dict[str, Any], **data: Any) -> Mixture:
    entries = [{"path": name, **settings} for each in corpora for name, settings in each.items()]
    return Mixture.open(MixtureSpec.from_dict({"corpora": entries, **data}, "m.toml", root))


def sources(mixture: Mixture, epoch: int = 0) -> Counter[tuple[str, str]]:
    """(corpus, language) of every sample; what is said is checked against both."""
    found: Counter[tuple[str, str]] = Counter()
    for i in range(len(mixture)):
        draw, sample = mixture.draw(i, epoch), mixture.sample(i, epoch)
        name = str(sample.source)
        asking = "en" if draw.direction == "from_en" else draw.lang
        assert sample.turns[0].text.startswith(f"{name} {asking} ")
        found[name, draw.lang] += 1
    return found


def test_each_row_once_without_settings(root: Path) -> None:
    mixture = open_mixture(root, {"big": {}}, {"gappy": {}}, {"tiny": {}})
    counts = sources(mixture)
    english = {name: counts[name, "en"] for name in CORPORA}
    assert english == {"big": 48, "gappy": 20, "tiny": 7}
    by_lang = Counter[str]()
    for (_, lang), count in counts.items():
        by_lang[lang] += count
    assert by_lang == {"en": 75, "cs": 25, "hr": 25, "de": 25}
    # Czech: 48 and 15 rows; Croatian: 48 and 7
    assert {k: n for k, n in counts.items() if k[1] != "en"} == {
        ("big", "cs"): 19, ("gappy", "cs"): 6, ("big", "hr"): 22, ("tiny", "hr"): 3,
        ("tiny", "de"): 25,
    }  # fmt: skip


def test_epochs_of_a_corpus(root: Path) -> None:
    mixture = open_mixture(root, {"big": {"epochs": 0.25}}, {"tiny": {"epochs": 3}})
    seen: Counter[int] = Counter()
    for epoch in range(4):
        rows = [mixture.draw(i, epoch) for i in range(len(mixture))]
        counts = Counter(draw.row for draw in rows if draw.lang == "en")
        big = {row for row in counts if row < 48}
        assert len(big) == 12
        assert [counts[row] for row in range(48, 55)] == [3] * 7
        seen.update(big)
    assert seen == dict.fromkeys(range(48), 1)  # another quarter every epoch


def test_weights_of_corpora(root: Path) -> None:
    mixture = open_mixture(
        root, {"big": {"weight": 1}}, {"tiny": {"weight": 2}}, non_english_ratio=0
    )
    assert len(mixture) == 55
    assert sources(mixture) == {("big", "en"): 18, ("tiny", "en"): 37}


def test_one_corpus_in_the_file_is_as_one_that_is_given(root: Path) -> None:
    named = open_mixture(root, {"big": {}})
    given = Mixture.open(MixtureSpec(), Corpus.open(root / "big"))
    assert [named.draw(i, 1) for i in range(96)] == [given.draw(i, 1) for i in range(96)]


@settings(max_examples=25, deadline=None)
@given(
    times=st.lists(st.sampled_from([0.25, 0.5, 1, 1.5, 3]), min_size=3, max_size=3),
    ratio=st.sampled_from([0, 0.4, 1, 2]),
    alpha=st.sampled_from([0, 0.3, 1]),
    num_epochs=st.integers(1, 3),
)
def test_simulation_is_what_is_drawn(
    root: Path, times: list[float], ratio: float, alpha: float, num_epochs: int
) -> None:
    mixture = open_mixture(
        root,
        *({name: {"epochs": epochs}} for name, epochs in zip(CORPORA, times, strict=True)),
        non_english_ratio=ratio,
        curriculum=[
            {"sampling": "temperature", "alpha": alpha},
            {"sampling": "temperature", "alpha": 1 - alpha, "from_epoch": 1},
        ],
    )
    drawn: dict[str, Counter[int]] = {}
    for epoch in range(num_epochs):
        for i in range(len(mixture)):
            draw = mixture.draw(i, epoch)
            drawn.setdefault(draw.lang, Counter())[draw.row] += 1
    english = sum(
        int(Fraction(str(epochs)) * rows + Fraction(1, 2))
        for epochs, (rows, _) in zip(times, CORPORA.values(), strict=True)
    )
    assert sum(drawn["en"].values()) == english * num_epochs
    for each in simulate(mixture, range(num_epochs)):
        counts = drawn.get(each.lang, Counter())
        assert each.count == sum(counts.values())
        assert each.num_rows == len(counts)
        assert each.most_often == max(counts.values(), default=0)


def test_it_travels_to_workers_and_knows_its_pictures(root: Path) -> None:
    mixture = open_mixture(root, {"big": {}}, {"tiny": {"epochs": 2}})
    copy = pickle.loads(pickle.dumps(mixture))
    assert [copy.draw(i) for i in range(20)] == [mixture.draw(i) for i in range(20)]
    joined = mixture.corpus
    assert isinstance(joined, JoinedCorpus)
    assert joined.image_paths(47) == (root / "big" / "big_images" / "47.jpg",)
    assert joined.image_paths(48) == (root / "tiny" / "tiny_images" / "0.jpg",)
    assert joined.turns("de", 0) is None
    assert joined.languages == ("en", "cs", "hr", "de")
    assert len(parts_of(joined)) == 2
    with pytest.raises(DataError, match="row 55 does not exist; rows run from 0 to 54"):
        joined.row(55)


def test_fingerprints(root: Path) -> None:
    one, other = (open_mixture(root, {"tiny": {"epochs": n}}, {"big": {}}) for n in (1, 2))
    turned = open_mixture(root, {"big": {}}, {"tiny": {}})
    assert one.spec.fingerprint() != other.spec.fingerprint()
    assert one.corpus.fingerprint() == other.corpus.fingerprint() != turned.corpus.fingerprint()


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([], r"corpora: Expected .* length >= 1, found \[\]"),
        (["big"], r"corpora\[0\]: Expected `object`, .*'big'"),
        ([{"epochs": 1}], r"corpora\[0\]: .*missing.*`path`"),
        ([{"path": "big", "times": 1}], "`times`; choose from: path, epochs, weight"),
        ([{"path": "big", "epochs": 0}], "epochs is 0, expected more than 0"),
        ([{"path": "big", "epochs": 1, "weight": 1}], "both epochs and weight"),
        ([{"path": "big", "weight": 1}, {"path": "tiny"}], "some have a weight"),
        ([{"path": "big"}, {"path": "big"}], "big comes twice"),
        ([{"path": "big"}, {"path": "tiny", "epochs": 0.01}], "of its 7 rows none comes"),
    ],
)
def test_what_is_wrong_is_said(root: Path, corpora: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mixture.open(MixtureSpec.from_dict({"corpora": corpora}, "m.toml", root))


def test_one_folder_by_two_paths_is_refused(root: Path) -> None:
    corpora = [{"path": "big"}, {"path": str(root / "big")}]
    with pytest.raises(ConfigError, match=r"m\.toml: corpora: .*big comes twice"):
        MixtureSpec.from_dict({"corpora": corpora}, "m.toml", root)


def test_corpora_from_two_sides_are_refused(root: Path) -> None:
    spec = MixtureSpec.from_dict({"corpora": [{"path": "big"}]}, folder=root)
    with pytest.raises(ConfigError, match="leave one of them out"):
        Mixture.open(spec, Corpus.open(root / "tiny"))
    with pytest.raises(ConfigError, match="no corpus"):
        Mixture.open(MixtureSpec())
    with pytest.raises(DataError, match="nowhere is not a corpus"):
        Mixture.open(MixtureSpec.from_dict({"corpora": [{"path": "nowhere"}]}, folder=root))
