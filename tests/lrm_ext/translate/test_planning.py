"""`lrm translate --plan`: the arithmetic, what of a corpus counts, and the table in the docs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus
from lrm_ext.translate.planning import (
    ASSUMPTIONS_FILE,
    Assumptions,
    count_volume,
    estimate,
    plan,
)

ROOT = Path(__file__).parents[3]
MakeCorpus = Callable[..., Path]
GIVEN = """
[volume]
rows = 1000
characters_per_row = 360
unique_share = 0.5
source = "invented"
[tokens]
characters_per_token = 4
relative = 2
source = "invented"
[gpu]
name = "X"
flops_per_s = 1e12
usd_per_hour = 3
source = "invented"
[[engines]]
name = "e"
licence = "l"
source = "s"
"""


def assumptions(tmp_path: Path, engine: str) -> Assumptions:
    path = tmp_path / "plan.toml"
    path.write_text(GIVEN + engine, encoding="utf-8")
    return load_toml(path, Assumptions)


def lrm(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["translate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


# 1000 * 360 * 0.5 = 180,000 characters, 45,000 tokens in and 90,000 out for each language
@pytest.mark.parametrize(
    ("engine", "hours", "usd"),
    [
        ("tokens_per_s = 100", 2 * 90_000 / 100 / 3600, 2 * 90_000 / 100 / 3600 * 3),
        # half of 2e6 parameters for each of 45,000 tokens, half for 90,000, two operations each
        (
            "parameters = 2e6\nutilization = 0.1",
            2 * (2e6 * 45_000 + 2e6 * 90_000) / 1e11 / 3600,
            2 * (2e6 * 45_000 + 2e6 * 90_000) / 1e11 / 3600 * 3,
        ),
        ("characters_per_cpu_s = 50", 2 * 180_000 / 50 / 3600, None),
        ("usd_per_million_characters = 20", None, 2 * 0.18 * 20),
        (
            "usd_per_million_input = 1\nusd_per_million_output = 4\ninput_per_token = 3",
            None,
            2 * (0.045 * 3 * 1 + 0.09 * 4),
        ),
        ('usd_per_million_characters = 20\nlanguages = ["hr"]', None, 0.18 * 20),
    ],
)
def test_arithmetic(tmp_path: Path, engine: str, hours: float | None, usd: float | None) -> None:
    given = assumptions(tmp_path, engine)
    found = estimate(given.engines[0], given, ("cs", "hr"))
    assert found.hours == (None if hours is None else pytest.approx(hours))
    assert found.usd == (None if usd is None else pytest.approx(usd))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("", "engine 'e' has no numbers, expected one of: parameters, utilization; tokens_per_s"),
        ("tokens_per_s = 1\nparameters = 2", "engine 'e' has parameters, tokens_per_s, expected"),
        ("parameters = 2", "engine 'e' has parameters, expected one of"),
        ("tokens_per_s = 0", r"engines\[0\].tokens_per_s: Expected `float` > 0.0, found 0"),
        ('tokens_per_s = "9"', "tokens_per_s: Expected `float | null`, got `str`, found '9'"),
        ("tokens_per_h = 9", "unknown key `tokens_per_h`; choose from: name, licence"),
        ("tokens_per_s = 1\n[[engines]]\nname = 'f'", r"engines\[1\]: missing key `licence`"),
    ],
)
def test_wrong_assumptions_are_named(tmp_path: Path, engine: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assumptions(tmp_path, engine)


def record(i: int, question: str, answer: str) -> dict[str, Any]:
    said = [("human", f"<image>\n{question}"), ("gpt", answer)]
    return {
        "id": str(i),
        "image": "1.png",
        "conversations": [{"from": role, "value": text} for role, text in said],
    }


def test_of_a_corpus_only_what_engines_get_is_counted(make_corpus: MakeCorpus) -> None:
    fixed = "What do you see?\nAnswer the question using a single word or phrase."
    rows = [record(i, fixed, "Yes") for i in range(3)]
    rows.append(record(3, fixed, "There is a dog."))
    rows.append(record(4, "What is 7 + 5?", "It is a sum."))
    corpus = make_corpus(rows, is_translatable=lambda sample: sample.id != "4")
    volume = count_volume(Corpus.open(corpus), "hr")
    # the request and "Yes" are in the language's file
    sent, once = 4 * len("What do you see?") + 15, len("What do you see?") + 15
    assert volume.rows == 4 and volume.source.startswith("counted, 5 rows;")
    assert volume.characters_per_row == sent / 4
    assert volume.unique_share == once / sent
    assert volume.characters == pytest.approx(once)


def test_command(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus([record(0, "What do you see?", "A dog that is running.")])
    own = tmp_path / "plan.toml"
    own.write_text(GIVEN + "usd_per_million_characters = 1e6", encoding="utf-8")
    said = lrm(corpus, "--plan", "--to", "cs,hr", "--assumptions", own, "--rows", "10")
    # ten rows like this one, two languages, a dollar a character
    assert f"| e | l | - | {10 * (16 + 22) * 2} |" in said
    assert "10 rows x 38 characters x 100 %" in said and "(cs hr)" in said
    assert "| e | l | - | 360,000 |" in lrm("--plan", "--to", "cs,hr", "--assumptions", own)
    with pytest.raises(ConfigError, match="unknown language 'xx'"):
        lrm("--plan", "--to", "xx")


def test_the_table_of_the_docs_is_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert plan(()) in text
    assert plan(()) == lrm("--plan").strip()


def test_shipped_assumptions_say_where_they_are_from() -> None:
    found = load_toml(ASSUMPTIONS_FILE, Assumptions)
    assert {"madlad", "nllb", "google"} <= {e.name.split()[0] for e in found.engines}
    assert all(len(entry.source) > 10 for entry in (found.volume, found.tokens, found.gpu))
    assert all(len(engine.source) > 10 for engine in found.engines)
    assert found.volume.rows == 1_200_000
