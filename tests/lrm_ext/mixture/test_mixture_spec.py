from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from llava.errors import ConfigError
from lrm_ext.mixture import MixtureSpec

MIXTURES = Path(__file__).parents[3] / "scripts" / "v1_5" / "mixtures"


def test_the_mixtures_that_ship_are_the_papers() -> None:
    finetune = MixtureSpec.from_toml(MIXTURES / "finetune.toml")
    assert finetune.non_english_ratio == 1
    assert tuple(finetune.languages) == ("cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")
    assert len(set(finetune.languages.values())) == 1
    assert finetune.instructions == {"mvqa": 1, "epvqa": 1, "bvqa": 1}
    pretrain = MixtureSpec.from_toml(MIXTURES / "pretrain.toml")
    assert pretrain.instructions == {"mvqa": 1}
    assert pretrain.languages == finetune.languages


def test_what_is_left_out_has_a_default() -> None:
    assert MixtureSpec.from_dict({}) == MixtureSpec()
    assert MixtureSpec().languages_in(["en", "cs", "hr"]) == {"cs": 1, "hr": 1}
    assert tuple(MixtureSpec().instructions) == ("mvqa", "epvqa", "bvqa")


def test_ratio_is_the_decimal_that_was_written() -> None:
    spec = MixtureSpec.from_dict({"non_english_ratio": 0.7})
    assert spec.non_english_ratio == Fraction(7, 10)
    assert [spec.num_non_english(n) for n in (0, 1, 10, 15)] == [0, 1, 7, 11]


def test_weights_and_fractions() -> None:
    assert MixtureSpec.from_dict({"languages": {"cs": 3, "hr": 1.0}}).languages["cs"] == 3
    spec = MixtureSpec.from_dict({"languages": {"cs": 0.9, "hr": 0.1}})
    assert sum(spec.languages.values()) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sed": 1}, r"m\.toml: .*unknown key `sed`; choose from: seed, non_eng"),
        ({"seed": -1}, "seed: Expected.*found -1"),
        ({"seed": True}, "seed: Expected.*found True"),
        ({"non_english_ratio": -0.5}, "non_english_ratio is -0.5"),
        ({"non_english_ratio": float("nan")}, "non_english_ratio: nan, expected a finite number"),
        ({"non_english_ratio": "1"}, "non_english_ratio: '1', expected a"),
        ({"languages": {"cs": 0.5, "hr": 0.4}}, r"cs = 0\.5, hr = 0\.4 add up to 0\.9"),
        ({"languages": {"cs": 0}}, r"languages: shares must be positive, found cs = 0"),
        ({"instructions": {"mvqa": 1, "bvqa": -2}}, "found bvqa = -2"),
        ({"instructions": {"xvqa": 1}}, r"'xvqa'; choose from: mvqa, epvqa, bvqa"),
        ({"languages": {"xx": 1}}, r"'xx'\. Choose from: en, cs"),
        ({"languages": {"en": 1}}, "every English row is drawn once"),
        ({"languages": {}}, "or leave it out"),
        ({"languages": {"cs": "much"}}, r"languages\[\.\.\.\]: 'much', expected a finite number"),
    ],
)
def test_what_is_wrong_is_said(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureSpec.from_dict(data, "m.toml")


def test_languages_of_the_user_replace_those_of_the_mixture() -> None:
    spec = MixtureSpec.from_dict({"languages": {"cs": 2, "de": 1}, "seed": 3})
    assert spec.in_languages(None) == spec
    assert spec.in_languages("hr,en,ru").languages == {"hr": 1, "ru": 1}
    assert spec.in_languages("all").languages == {}
    assert spec.in_languages("hr").seed == 3
    for given, message in (("en", "name those besides English"), ("xx", "unknown language 'xx'")):
        with pytest.raises(ConfigError, match=message):
            spec.in_languages(given)
