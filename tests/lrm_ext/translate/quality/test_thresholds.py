"""What a language's [quality] section may say."""

from __future__ import annotations

from typing import Any

import pytest

from llava.errors import ConfigError
from lrm_ext.languages.registry import list_languages
from lrm_ext.translate.quality import CHECKS
from lrm_ext.translate.quality.base import (
    DEFAULT_LIMITS,
    get_thresholds,
    parse_thresholds,
)


def test_every_check_has_a_limit_in_every_language() -> None:
    for lang in list_languages():
        assert set(CHECKS) <= set(get_thresholds(lang).limits)


def test_what_the_file_leaves_out_has_a_default() -> None:
    found = parse_thresholds({"near": ["sr"], "limits": {"length": 5}}, "hr.toml")
    assert found.near == ("sr",)
    assert found.limits == {**DEFAULT_LIMITS, "length": 5.0}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"nere": []}, "unknown key `nere`; choose from: near"),
        ({"near": "sr"}, "near: Expected `array`, got `str`, found 'sr'"),
        ({"limits": {"lenght": 1}}, "no check is called lenght"),
        ({"limits": {"length": "1"}}, "limits[...]: Expected `float`, got `str`"),
        ({"limits": 3}, "limits: Expected `object`, got `int`, found 3"),
        ({"length_ratio": 0}, "length_ratio: Expected `float` > 0.0, found 0"),
        ({"foreign_letters": ["a"]}, "foreign_letters: Expected `str`, got `array`"),
    ],
)
def test_faults_are_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"hr\.toml: quality|hr\.toml") as error:
        parse_thresholds(table, "hr.toml: quality")
    assert words in str(error.value)


def test_unknown_checks_are_refused() -> None:
    with pytest.raises(ConfigError, match="no check is called"):
        get_thresholds("hr").with_limits({"lenght": 1.0})
