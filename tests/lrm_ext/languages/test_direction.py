"""The direction in which languages are written."""

import pytest

from llava.errors import ConfigError
from lrm_ext.languages import list_languages
from lrm_ext.languages.registry import text_direction


def test_the_direction_is_cldrs_or_that_of_the_script():
    right_to_left = "ar he fa ur ps yi ckb ug dv ar-EG pa-Arab ar-x-ours"
    assert {text_direction(code) for code in right_to_left.split()} == {"rtl"}
    assert {text_direction(code) for code in (*list_languages()[:10], "pa", "az", "mn")} == {"ltr"}
    assert (text_direction("nqo"), text_direction("qqq")) == ("rtl", "ltr")
    with pytest.raises(ConfigError, match="not a language code"):
        text_direction("ar_EG")
