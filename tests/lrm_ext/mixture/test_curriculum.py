"""Shares of languages that are computed, and that change with the epoch."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.mixture import LanguageMixSampler, Mixture, MixtureSpec
from lrm_ext.mixture.spec import Phase, shares_of

SIZES = {"cs": 90, "de": 45, "hr": 6}
NUM_ROWS = 90


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Each language has texts for the first rows only."""
    path = tmp_path_factory.mktemp("curriculum") / "corpus"
    turns = (Turn("human", "Q?"), Turn("gpt", "A"))
    with CorpusWriter(path, list(SIZES)) as writer:
        for i in range(NUM_ROWS):
            texts = {lang: turns for lang, size in SIZES.items() if i < size}
            writer.append(CorpusRow(f"r{i}", None, None, None, True, turns), texts)
    return Corpus.open(path)


def spec(*phases: dict[str, Any], **more: Any) -> MixtureSpec:
    return MixtureSpec.from_dict({"curriculum": list(phases), **more}, "m.toml")


def temperature(alpha: float, from_epoch: int = 0) -> dict[str, Any]:
    return {"from_epoch": from_epoch, "sampling": "temperature", "alpha": alpha}


def unimax(max_epochs: float, from_epoch: int = 0) -> dict[str, Any]:
    return {"from_epoch": from_epoch, "sampling": "unimax", "max_epochs": max_epochs}


def shares(from_epoch: int = 0) -> dict[str, Any]:
    return {"from_epoch": from_epoch, "sampling": "shares"}


def drawn(mixture: Mixture, epoch: int) -> dict[str, int]:
    counts = Counter(mixture.draw(i, epoch).lang for i in range(len(mixture)))
    assert counts.pop("en") == NUM_ROWS
    return dict(counts)


def test_temperature_goes_from_even_to_by_size(corpus: Corpus) -> None:
    assert drawn(Mixture(spec(temperature(0)), corpus), 0) == {"cs": 30, "de": 30, "hr": 30}
    assert drawn(Mixture(spec(temperature(1)), corpus), 0) == {"cs": 57, "de": 29, "hr": 4}
    # 9.487 : 6.708 : 2.449, of 90
    assert drawn(Mixture(spec(temperature(0.5)), corpus), 0) == {"cs": 46, "de": 32, "hr": 12}


def test_unimax_is_even_under_a_cap(corpus: Corpus) -> None:
    # Croatian may have 12; the rest of 90 is shared by the two others
    assert drawn(Mixture(spec(unimax(2)), corpus), 0) == {"cs": 39, "de": 39, "hr": 12}
    assert drawn(Mixture(spec(unimax(5)), corpus), 0) == {"cs": 30, "de": 30, "hr": 30}
    assert drawn(Mixture(spec(unimax(0.7)), corpus), 0) == {"cs": 55, "de": 31, "hr": 4}


def test_unimax_that_cannot_be_is_refused(corpus: Corpus) -> None:
    with pytest.raises(
        ConfigError, match=r"90 non-English.*max_epochs = 0\.5 allows 70 \(.*hr = 3"
    ):
        Mixture(spec(unimax(0.5)), corpus)


def test_it_changes_with_the_epoch_and_nothing_else(corpus: Corpus) -> None:
    mixture = Mixture(
        spec(shares(), temperature(1, 2), unimax(2, 3), languages={"cs": 1, "hr": 2}), corpus
    )
    even, sized, capped = {"cs": 30, "hr": 60}, {"cs": 84, "hr": 6}, {"cs": 78, "hr": 12}
    assert [drawn(mixture, epoch) for epoch in range(5)] == [even, even, sized, capped, capped]
    again = Mixture(mixture.spec, corpus)  # asked for its fourth epoch at once
    assert [again.draw(i, 3) for i in range(180)] == [mixture.draw(i, 3) for i in range(180)]


@settings(max_examples=40, deadline=None)
@given(
    alphas=st.lists(st.sampled_from([0, 0.2, 0.5, 1]), min_size=1, max_size=4),
    gap=st.integers(1, 3),
    num_epochs=st.integers(1, 8),
)
def test_no_row_twice_before_all_were_there(
    corpus: Corpus, alphas: list[float], gap: int, num_epochs: int
) -> None:
    mixture = Mixture(spec(*(temperature(a, i * gap) for i, a in enumerate(alphas))), corpus)
    rows: dict[str, Counter[int]] = {lang: Counter() for lang in SIZES}
    for epoch in range(num_epochs):
        for position in range(NUM_ROWS):
            draw = mixture.layout(epoch).draw(NUM_ROWS + position)
            rows[draw.lang][draw.row] += 1
    for lang, counts in rows.items():
        times = [counts[row] for row in range(SIZES[lang])]
        assert sum(times) == sum(counts.values())  # no other rows
        assert max(times) - min(times) <= 1


@given(
    total=st.integers(0, 10**7),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=9),
    most=st.fractions(Fraction(1, 4), 20, max_denominator=8),
)
def test_unimax_is_fair(total: int, sizes: list[int], most: Fraction) -> None:
    """Each is at its cap, or has as much as the one that has most."""
    names = {f"l{i}": Fraction(size) for i, size in enumerate(sizes)}
    even = dict.fromkeys(names, Fraction(1))
    phase = Phase("unimax", max_epochs=most)
    caps = {lang: int(size * most) for lang, size in names.items()}
    if sum(caps.values()) < total:
        with pytest.raises(ConfigError, match="unimax"):
            shares_of(phase, total, even, names)
        return
    found = shares_of(phase, total, even, names)
    assert sum(found.values()) == total
    for lang, share in found.items():
        assert share == caps[lang] or share == max(found.values())


def test_the_sampler_follows_it(corpus: Corpus) -> None:
    langs = ["en"] * NUM_ROWS + [lang for lang, size in SIZES.items() for _ in range(size)]
    sampler = LanguageMixSampler(langs, spec(temperature(0), unimax(2, 1)))
    for epoch, expected in enumerate(({"cs": 30, "de": 30, "hr": 30}, {"cs": 39, "de": 39})):
        sampler.set_epoch(epoch)
        counts = Counter(langs[i] for i in sampler)
        assert counts.items() >= {"en": NUM_ROWS, **expected}.items()


def test_fingerprints_differ_where_orders_do() -> None:
    given = [spec(temperature(0.3)), spec(temperature(0.5)), spec(unimax(2)), MixtureSpec()]
    assert len({each.fingerprint() for each in given}) == 4
    # of a run that began before there were curricula
    assert spec(shares()).fingerprint() == MixtureSpec().fingerprint()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"curriculum": []}, r"m\.toml: curriculum: Expected .* length >= 1, found \[\]"),
        ({"curriculum": [{}]}, r"curriculum\[0\]: .*missing.*`sampling`"),
        ({"curriculum": [{"sampling": "temp"}]}, "'temp'; choose from: shares, temp"),
        ({"curriculum": [{"sampling": "temperature"}]}, "temperature needs alpha"),
        ({"curriculum": [{"sampling": "unimax", "alpha": 1}]}, "unimax does not take alpha"),
        ({"curriculum": [{"sampling": "shares", "alpha": 1}]}, "shares does not take alpha"),
        ({"curriculum": [temperature(1.5)]}, r"alpha is 1\.5, expected 0 to 1"),
        ({"curriculum": [unimax(0)]}, "max_epochs is 0"),
        ({"curriculum": [shares(1)]}, "from_epoch is 1; expected 0 first"),
        ({"curriculum": [shares(), unimax(1, 2), shares(2)]}, "from_epoch is 0, 2, 2"),
        (
            {"curriculum": [unimax(1)], "languages": {"cs": 1}},
            r'gives shares \(cs = 1\).*Write a list, languages = \["cs", "hr"\]',
        ),
        ({"languages": ["cs", "cs"]}, "one comes twice"),
        ({"languages": ["xx"]}, "unknown language 'xx'"),
        ({"languages": []}, "or leave it out"),
    ],
)
def test_what_is_wrong_is_said(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureSpec.from_dict(data, "m.toml")


def test_languages_as_a_list(corpus: Corpus) -> None:
    assert MixtureSpec.from_dict({"languages": ["cs", "hr"]}).languages == {"cs": 1, "hr": 1}
    mixture = Mixture(spec(unimax(2), languages=["cs", "hr"]), corpus)
    assert drawn(mixture, 0) == {"cs": 78, "hr": 12}


def test_a_file_with_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        'languages = ["cs"]\n[[corpora]]\npath = "a"\nepochs = 2\n'
        '[[curriculum]]\nsampling = "temperature"\nalpha = 0.3\n'
    )
    found = MixtureSpec.from_toml(path)
    assert found.corpora[0].path == tmp_path / "a"
    assert found.curriculum == (Phase("temperature", alpha=Fraction(3, 10)),)
