"""The paper's tables from made-up runs with known scores, in every format."""

import csv
import io
import json
import re

import pytest
from answered_runs import write_run
from html_page import Page
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.evaluate.results import _read_stored
from lrm_ext.report.paper_tables import agreement_table, models_table, published, summary_table
from lrm_ext.report.settings import Setting, score_settings
from lrm_ext.report.tables import (
    FORMATS,
    PLUS_MINUS,
    latex_escape,
    to_csv,
    to_latex,
    to_markdown,
    to_terminal,
)


def setting(label, *runs):
    return Setting(label, runs)


@pytest.fixture
def runs(tmp_path):
    """English-only, and two seeds of the whole; Chinese of the first is not finished."""
    base = write_run(tmp_path / "base", {"en": 19, "cs": 10, "de": 12})
    write_run(base, {"zh": 5}, num_answered=8)
    one = write_run(tmp_path / "one", {"en": 18, "cs": 16, "de": 14, "zh": 20})
    two = write_run(tmp_path / "two", {"en": 20, "cs": 18, "de": 14, "zh": 18})
    return base, one, two


@pytest.fixture
def table(runs):
    base, one, two = runs
    return models_table([setting("English_only", base), setting("full & more", one, two)])


def rows_of(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_scores_seeds_and_missing_values(table):
    rows = {(row["Model"], row["column"]): row for row in rows_of(table)}
    assert len(rows) == 2 * 5
    base, full = (lambda column: rows["English_only", column]), (lambda c: rows["full & more", c])
    assert [float(base(c)["value"]) for c in ("En", "Cs", "De")] == [95, 50, 60]
    assert [float(full(c)["value"]) for c in ("En", "Cs", "De", "Zh")] == [95, 85, 70, 95]
    assert float(full("Cs")["spread"]) == pytest.approx(50**0.5)
    # the spread of the mean is that of the runs' means: 83.33 in both
    assert float(full("Avg")["value"]) == pytest.approx(250 / 3)
    assert float(full("Avg")["spread"]) == pytest.approx(0, abs=1e-9)
    assert (full("Cs")["answered"], full("Cs")["questions"], full("Cs")["runs"]) == (
        "40",
        "40",
        "2",
    )
    assert base("Zh")["value"] == "" and base("Zh")["reason"] == "8 of 20 questions answered"
    assert base("Avg")["value"] == "" and base("Avg")["reason"] == "1 of 3 languages missing"
    best = {key for key, row in rows.items() if row["best"] == "yes"}
    # English is equal, so both are best; a value alone is not
    assert best == {("English_only", "En"), *(("full & more", c) for c in ("En", "Cs", "De"))}


def test_stored_verdicts_of_many_runs_are_read_once_each(tmp_path):
    settings = []
    for number in range(4):
        folder = write_run(tmp_path / f"{number}", {"en": 19, "cs": 10, "de": 12})
        (folder / "scores.jsonl").touch()
        settings.append(setting(f"{number}", folder))
    _read_stored.cache_clear()
    score_settings(settings)
    assert _read_stored.cache_info().misses == len(settings)


def test_the_terminal_says_how_many_of_how_many_and_why_not(table):
    lines = [" ".join(line.split()) for line in to_terminal(table).splitlines()]
    assert lines[2:4] == ["toy: accuracy, read as local", "Model En Cs De Zh Avg answered"]
    assert lines[5:7] == [
        "English_only 95.0 50.0 60.0 - [1] - [2] 68 of 80",
        "full & more 95.0 ± 7.1 85.0 ± 7.1 70.0 ± 0.0 95.0 ± 7.1 83.3 ± 0.0 160 of 160",
    ]
    assert lines[-2:] == [
        "[1] missing: 8 of 20 questions answered (English_only in Chinese)",
        "[2] missing: 1 of 3 languages missing (English_only in mean without English)",
    ]


def test_markdown_and_latex_escape_and_mark_the_best(table):
    markdown = FORMATS["markdown"](table)
    assert (
        "| English\\_only | **95.0** | 50.0 | 60.0 | - \\[1\\] | - \\[2\\] | 68 of 80 |" in markdown
    )
    assert "| full & more | **95.0 ± 7.1** | **85.0 ± 7.1** |" in markdown
    latex = to_latex(table)
    assert r"English\_only & \textbf{95.0} & 50.0 & 60.0 & - [1] & - [2] & 68 of 80 \\" in latex
    assert r"full \& more & \textbf{95.0 $\pm$ 7.1} & \textbf{85.0 $\pm$ 7.1}" in latex
    assert latex.count("{") == latex.count("}")
    assert latex_escape(r"50% of_a{b}\c~^#$") == (
        r"50\% of\_a\{b\}\textbackslash{}c\textasciitilde{}\textasciicircum{}\#\$"
    )


def test_html_holds_every_value(table):
    page = FORMATS["html"](table)
    assert "full &amp; more" in page and "<b>85.0 ± 7.1</b>" in page
    assert "8 of 20 questions answered" in page and "http" not in page.split("<body")[1]


def test_published_rows_stand_apart_and_are_the_papers():
    table = models_table([], ["mme", "seed"])
    assert ["published" in block.title for block in table.blocks] == [True, True]
    rows = [row for row in rows_of(table) if row["Model"] == "LRM-LLaVA"]
    assert {row["published"] for row in rows} == {"yes"}
    values = {(row["block"].split(",")[0], row["column"]): row["value"] for row in rows}
    assert values["Multilingual MME", "Hr"] == "1422.3" and len(rows) == 22
    lengths = {len(row) for kind in published()["table1"].values() for row in kind.values()}
    assert lengths == {10}


def test_published_rows_do_not_compete_with_measured_ones(tmp_path):
    run = write_run(tmp_path / "run", {"en": 10, "cs": 5})
    table = summary_table(3, [setting("mine", run), setting("w/o all", run)])
    measured, papers = table.blocks
    assert measured.best(0, 1) == 50 and papers.best(0, 1) == 70.2
    assert measured.rows[0].counts == "40 of 40" and papers.rows[0].counts == "published"


def test_language_models_need_two_labels(tmp_path):
    run = write_run(tmp_path / "run", {"en": 10, "cs": 5})
    table = summary_table(4, [setting("Tiny/with", run), setting("Tiny/w/o", run)])
    assert [row.labels for row in table.blocks[0].rows] == [("Tiny", "with"), ("Tiny", "w/o")]
    with pytest.raises(ConfigError, match="Vicuna-7B/with"):
        summary_table(4, [setting("Tiny", run)])


def test_agreement_of_translations(tmp_path):
    figures = {"cs": {"bleu": 40.0, "chrf": 60.0, "num_texts": 7, "num_left_out": 1},
               "de": {"bleu": 50.0, "chrf": 62.0, "num_texts": 7, "num_left_out": 0}}  # fmt: skip
    path = tmp_path / "mme.json"
    path.write_text(json.dumps({
        "benchmark": "mme", "hypothesis": "nllb", "reference": "madlad", "languages": figures,
    }))  # fmt: skip
    table = agreement_table([path])
    rows = rows_of(table)
    ours = [(row["column"], row["value"]) for row in rows if row["published"] == "no"]
    assert ours[:3] == [("Cs", "40.0"), ("De", "50.0"), ("Avg", "45.0")]
    assert [row["value"] for row in rows if row["published"] == "yes"] == [
        "57.34", "54.23", "58.55", "56.19",
    ]  # fmt: skip
    assert table.blocks[0].rows[0].counts == "14 texts, 1 questions left out"
    path.write_text('{"languages": []}')
    with pytest.raises(DataError, match="lrm benchmark agreement"):
        agreement_table([path])


def test_labels_of_settings(tmp_path):
    assert Setting.parse("a b=x,y").runs[1].name == "y"
    assert Setting.parse(str(tmp_path / "model" / "eval")).label == "model"
    for wrong in ("=x", "a=", "a=x,x"):
        with pytest.raises(ConfigError):
            Setting.parse(wrong)


def test_what_cannot_be_scored_is_said(runs):
    base, one, _ = runs
    with pytest.raises(ConfigError, match="two settings are called a"):
        score_settings([setting("a", base), setting("a", one)])
    with pytest.raises(DataError, match="no run has answers to pope"):
        score_settings([setting("a", base)], ["pope"])
    path = one / "predictions" / "toy.cs.jsonl"
    path.write_text(path.read_text().replace("cs 3?", "cs 33?"))
    (scored,) = score_settings([setting("a", base), setting("b", one)])
    assert scored.cells["b"]["cs"].reason.startswith("1 questions are worded")


def test_the_command_writes_each_format(runs, tmp_path):
    for style in FORMATS:
        out = tmp_path / f"table.{style}"
        arguments = ["table", "1", f"base={runs[0]}", "--format", style, "--out", str(out)]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert "base" in out.read_text(encoding="utf-8")
    result = CliRunner().invoke(app, ["table", "1", str(runs[1]), "--languages", "en,cs"])
    assert "85" not in result.output and "40 of 40" in result.output


def test_of_many_languages_the_columns_are_rows_in_every_format(monkeypatch, table):
    monkeypatch.setattr("lrm_ext.report.tables.MAX_ROWS", 3)
    markdown = to_markdown(table).splitlines()
    heads = next(line for line in markdown if line.startswith("| Model |"))
    num = len(table.blocks[0].rows)
    assert heads.count("|") == num + 2
    rule = markdown[markdown.index(heads) + 1]
    assert rule == "| --- |" + " ---: |" * num
    english = next(line for line in markdown if line.startswith("| English |"))
    assert english.split(" | ")[1:] == ["**95.0**", f"**95.0 {PLUS_MINUS} 7.1** |"]
    latex = to_latex(table)
    assert r"Model & English\_only & full \& more \\" in latex
    assert rf"\begin{{tabular}}{{l{'r' * num}}}" in latex
    html = FORMATS["html"](table)
    assert re.search(r"<td>English</td>\s*<td class=\"value\"><b>95.0</b></td>", html)
    every = models_table([])
    page = Page(FORMATS["html"](every))
    assert page.text.count("Czech") == len(every.blocks) == 4
    assert FORMATS["terminal"](every).count("mean without English") == 4
