"""Verdicts on made-up results, and the page that is made of them."""

import importlib.util
from pathlib import Path

import pytest

from llava.errors import DataError
from lrm_ext.evaluate.statistics import Difference
from tools.reproduce.page import BLOCKS, claims_block, languages_block, runs_block
from tools.reproduce.results import pack_bits, read_results, unpack_bits
from tools.reproduce.settings import read_study
from tools.reproduce.verdicts import (
    CONTRADICTED,
    OPEN,
    SUPPORTED,
    Bootstrap,
    Claim,
    judge,
    judge_all,
    read_claims,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("expect", "low", "high", "verdict"),
    [
        ("higher", 1, 3, SUPPORTED),
        ("higher", -1, 3, OPEN),
        ("higher", -3, -1, CONTRADICTED),
        ("lower", -3, -1, SUPPORTED),
        ("lower", 1, 3, CONTRADICTED),
        ("not lower", -1.5, 0.5, SUPPORTED),
        ("not lower", -4, 1, OPEN),
        ("not lower", -4, -2.5, CONTRADICTED),
        ("not higher", -9, 1.5, SUPPORTED),
        ("not higher", -1, 4, OPEN),
        ("not higher", 3, 4, CONTRADICTED),
    ],
)
def test_an_interval_decides(expect, low, high, verdict):
    claim = Claim("", "", "a", "b", "en", expect, 2.0)
    assert judge(Difference((low + high) / 2, low, high, 0.5, 1.0), claim) == verdict


def test_known_differences_get_their_verdicts(make_results):
    _, results = make_results(
        {
            "english-only": (0.7, 0.3),
            "full": (0.7, 0.7),
            "without-epvqa": (0.7, 0.9),
            "without-bvqa": (0.7, 0.7),
        }
    )
    study = read_study()
    benchmarks, claims = read_claims(study)
    found = {
        (claim.a, claim.languages): one["scenes"].verdict
        for claim, one in zip(
            claims, judge_all(results, read_study(), benchmarks, claims), strict=True
        )
    }
    assert found["english-only", "others"] == SUPPORTED
    assert found["without-epvqa", "others"] == CONTRADICTED
    assert found["without-bvqa", "others"] == OPEN
    assert found["ratio-40", "others"] == OPEN  # no runs


def test_one_seed_decides_nothing(make_results):
    _, results = make_results({"english-only": (0.7, 0.1), "full": (0.7, 0.9)}, seeds=(0,))
    claim = Claim("", "", "english-only", "full", "others", "higher", 2.0)
    one = Bootstrap(results, read_study()).judge(claim, "scenes")
    assert one.verdict == OPEN and one.num_seeds == 1
    assert one.found is not None and one.found.low > 50


def test_seeds_that_disagree_widen_the_interval(make_results):
    """Two settings that are equal on average, but not seed by seed."""
    folder, results = make_results({"a": (0.5, 0.5), "b": (0.5, 0.5)})
    narrow, _ = Bootstrap(results, read_study()).difference("a", "b", "scenes", "others")
    for (setting, seed), run in results.runs.items():
        if setting == "b" and seed != 1:
            for language in run["benchmarks"]["scenes"]["languages"].values():
                language["right"] = pack_bits([seed == 0] * language["num_questions"])
    wide, _ = Bootstrap(results, read_study()).difference("a", "b", "scenes", "others")
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_bits_come_back():
    right = [True, False, False, True, True, False, True, True, False, True, True]
    assert unpack_bits(pack_bits(right), 11).tolist() == right
    with pytest.raises(DataError, match="2 bytes .* for 20 questions"):
        unpack_bits(pack_bits(right), 20)


def test_results_of_other_questions_are_refused(make_results):
    folder, _ = make_results({"full": (0.5, 0.5)})
    path = folder / "full.seed1.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"questions_sha256": "', '"questions_sha256": "0'), "utf-8")
    with pytest.raises(DataError, match="full.seed1.json: of another format, or about other"):
        read_results(folder)
    with pytest.raises(DataError, match="no results in it"):
        read_results(folder.parent)


def test_blocks_say_what_is_there(make_results):
    _, results = make_results({"full": (0.7, 0.6)}, seeds=(0, 2))
    study = read_study()
    runs = runs_block(results, study)
    assert "| 4 + 8 | 0, 2 |" in runs and "2 of 30 runs are there" in runs
    assert "open: no runs" in claims_block(results, study)
    # 2 seeds, 2 languages, 60 answers each: in Czech, which is right for one of the two
    assert "| full | 400 | 30.0 % | 30.0 % | 30.0 % | 10.0 % |" in languages_block(results, study)


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check", ROOT / "tools/check_reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_a_changed_figure_is_found(make_results, tmp_path, check, caplog):
    folder, _ = make_results({"full": (0.7, 0.6), "english-only": (0.7, 0.3)})
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- reproduce {name} -->\n<!-- end {name} -->\n" for name in BLOCKS), "utf-8"
    )
    arguments = ["--page", str(page), "--results", str(folder)]
    assert check(arguments) == 1
    assert check([*arguments, "--write"]) == 0
    assert check(arguments) == 0
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("**supported**", "**contradicted**", 1), "utf-8")
    assert check(arguments) == 1
    assert "contradicted" in caplog.text
    page.write_text("nothing", "utf-8")
    assert check(arguments) == 2


def test_the_page_is_what_the_committed_results_say(check):
    assert check([]) == 0
