"""Tables in other papers' protocols: what they publish, and which runs may stand beside it."""

import csv
import dataclasses
import io
import json
from collections import Counter

import pytest
from answered_runs import write_run
from typer.testing import CliRunner

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.cli import app
from lrm_ext.evaluate.kind import LOCAL, Judgement, judge_locally
from lrm_ext.evaluate.kinds import ANSWERS, KINDS
from lrm_ext.languages.registry import canonical_code, shipped_languages
from lrm_ext.report import protocols
from lrm_ext.report.protocols import (
    PROTOCOLS,
    PublishedColumn,
    PublishedRows,
    PublishedTable,
    check_table,
    protocol_table,
    published_table,
)
from lrm_ext.report.settings import Setting
from lrm_ext.report.tables import FORMATS, to_csv, to_terminal

OWNERS = "; read as `official`"


def rows_of(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def values_of(table, model):
    """By block and column; those without a value by their reason."""
    rows = [row for row in rows_of(table) if row["Model"] == model]
    return {
        (row["block"].removesuffix(OWNERS), row["column"]): float(row["value"])
        if row["value"]
        else row["reason"]
        for row in rows
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_published_figures_are_whole_and_say_where_they_are_from(name):
    table = published_table(name)
    made = protocol_table(name, [])
    assert all(row["published"] == "yes" and row["value"] for row in rows_of(made))
    for rows in table.published:
        assert rows.source and rows.protocol and any(rows.source in note for note in made.notes)
        assert set(rows.figures) <= set(table.parts)
    heads = [column.head for column in table.columns]
    for column in table.columns:
        assert set(column.mean_of) <= set(heads) and set(column.languages) <= set(table.parts)
        assert not column.mean_of or not column.languages
        for codes in column.languages.values():
            assert codes == [canonical_code(code) for code in codes], column.head
            assert len(set(codes)) == len(codes)
            assert "en" not in codes or len(codes) == 1 or column.head == "Macro"
    figures = [f"{float(row['value']):.1f}" for row in rows_of(made)]
    for width in (60, 80, 100):
        printed = to_terminal(made, width)
        assert max(map(len, printed.splitlines())) <= width
        # heads may be folded, figures never
        assert not Counter(figures) - Counter(printed.split()), width
    for style, write in FORMATS.items():
        assert "Pangea" in write(made) or name in ("kaleidoscope", "mmmb"), style


def test_a_language_is_in_one_tier():
    tiers = load_toml(protocols.PUBLISHED_DIR / "tiers.toml")
    codes = [code for tier in tiers.values() for code in tier]
    assert len(set(codes)) == len(codes) and "en" not in codes
    assert {*shipped_languages()} - {*codes} == {"en", "ne"}, "Nepali is in none of the tables"
    assert codes == [canonical_code(code) for code in codes]


def test_printed_means_are_those_of_the_printed_figures():
    (pangea, _) = published_table("pangea").published
    for by_model in pangea.figures.values():
        for model, (mean, *figures) in by_model.items():
            assert mean == pytest.approx(sum(figures) / len(figures), abs=0.06), model
    mmmb = values_of(protocol_table("mmmb", []), "Parrot")
    assert mmmb["accuracy in percent", "Avg"] == pytest.approx((68.1 + 67.3 + 62.7 + 58 + 66.3) / 5)
    pangea, centurio = (
        values_of(protocol_table(name, []), model)
        for name, model in (("pangea", "Pangea-7B"), ("centurio", "Pangea"))
    )
    assert pangea["mean without English (mul)", "MaRVL"] == 79.0
    assert [v for (_, head), v in centurio.items() if head == "MaRVL"] == [70.5, 75.8]
    tiers = [v for (_, head), v in centurio.items() if head in ("T1", "T5", "En")]
    assert tiers == [38.5, 49.9, 59.8]


def test_pangeas_and_centurios_figures_are_never_in_one_table():
    for arguments in (["pangea,centurio"], ["pangea", "centurio", "runs/x"]):
        done = CliRunner().invoke(app, ["table", *arguments])
        assert done.exit_code != 0 and "never in one table" in str(done.exception)
    with pytest.raises(ConfigError, match="one table at a time; found pangea, mmmb"):
        check_table("pangea,mmmb", [])
    with pytest.raises(ConfigError, match=r"there is no table '5'; choose from 1, .* mmmb"):
        check_table("5", [])
    done = CliRunner().invoke(app, ["table", "mmmb", "--languages", "en"])
    assert "those of its source" in str(done.exception)


@pytest.fixture
def toy(monkeypatch):
    """A protocol of two sets and a mean."""
    columns = [
        PublishedColumn(head="Avg", mean_of=["One", "Two"]),
        PublishedColumn(head="One", set="one", languages={"mul": ["cs", "de"], "en": ["en"]}),
        PublishedColumn(head="Two", set="two", languages={"mul": ["de"], "en": ["en"]}),
        PublishedColumn(head="Three", set="two", languages={"mul": []}, not_filled="by a judge"),
    ]
    rows = PublishedRows(
        "A (2024)", "its own", {"mul": {"peer": [1, 2, 3, 4]}, "en": {"peer": [5, 6, 7]}}
    )
    parts = {"mul": "others", "en": "English"}
    table = PublishedTable("Toy", ["Toy."], parts, columns, [rows])
    monkeypatch.setattr(protocols, "published_table", lambda name: table)


@pytest.fixture
def official(monkeypatch):
    # every answer is right that does not say no
    def judge(item, text, reading):
        return Judgement(text, not text.startswith("N"), "en")

    changed = dataclasses.replace(
        ANSWERS, modes={LOCAL: judge_locally, "official": judge}, refused={}
    )
    monkeypatch.setitem(KINDS, "answers", changed)


def test_what_only_the_local_rules_read_stands_apart(tmp_path, toy):
    run = write_run(tmp_path / "mine", {"en": 19, "cs": 10, "de": 12}, "one")
    made = protocol_table("toy", [Setting("mine", (run,))])
    assert [block.title for block in made.blocks] == [
        "others; read as `official`",
        "others; read as `local`, not by the protocol's rules: not comparable",
        "English; read as `official`",
        "English; read as `local`, not by the protocol's rules: not comparable",
    ]
    found = values_of(made, "mine")
    assert found["others", "One"].startswith("read by `local` only")
    assert found["others", "Two"] == found["others", "Three"] == "not run"
    assert found["others", "Avg"] == "2 of 2 columns missing"
    assert found[made.blocks[1].title, "One"] == 55 and (made.blocks[1].title, "Two") not in found
    assert found[made.blocks[3].title, "One"] == 95
    text = " ".join(to_terminal(made, 100).split())
    assert "mine fills 0 of 4 cells: others." in text
    assert "missing: not run (mine in Two; mine in Three)" in text
    assert "Published (peer): A (2024). Protocol: its own." in text


def test_a_run_that_is_read_by_the_owners_rules_stands_beside(tmp_path, toy, official):
    run = write_run(tmp_path / "mine", {"en": 19, "cs": 10, "de": 12}, "one")
    write_run(run, {"en": 20, "de": 20}, "two")
    made = protocol_table("toy", [Setting("mine", (run,))])
    assert [block.title for block in made.blocks][0] == "others" + OWNERS
    ours, peer = made.blocks[0].rows
    found = values_of(made, "mine")
    # every second answer says no, whatever was asked
    one = (found["others", "One"], found["others", "Two"])
    assert one == (50, 50) and found["others", "Avg"] == 50
    assert found["others", "Three"] == "by a judge"
    assert ours.counts == "60 of 60" and peer.counts == "published"
    assert "mine fills 3 of 4 cells: others." in made.notes
    (tiers,) = (note for note in made.notes if "by tier of resources" in note)
    assert "over their sets: T4 50.0 (cs), T5 50.0 (de). How" in tiers
    assert not any(row["best"] == "yes" for row in rows_of(made))


def test_part_of_a_set_is_not_the_protocols(tmp_path, toy, official):
    run = write_run(tmp_path / "mine", {"en": 19, "de": 12}, "one")
    made = protocol_table("toy", [Setting("mine", (run,))])
    found = values_of(made, "mine")
    assert [block.title for block in made.blocks] == ["others" + OWNERS, "English" + OWNERS]
    assert found["others", "One"] == "not asked: cs" and found["English", "One"] == 55
    (run / "report.json").write_text(json.dumps({"limit": 20}))
    found = values_of(protocol_table("toy", [Setting("mine", (run,))]), "mine")
    assert found["English", "One"] == "only some of the questions: --limit 20"
    local = "English; read as `local`, not by the protocol's rules: not comparable"
    assert found[local, "One"] == 95


def test_another_metric_is_not_put_beside(tmp_path, toy, official, monkeypatch):
    changed = dataclasses.replace(KINDS["answers"], headline="mean chrF")
    monkeypatch.setitem(KINDS, "answers", changed)
    run = write_run(tmp_path / "mine", {"en": 19}, "one")
    made = protocol_table("toy", [Setting("mine", (run,))])
    found = values_of(made, "mine")
    assert found["English", "One"] == "our reading gives mean chrF, the source accuracy"
    assert "Where `local` reads, One is mean chrF." in made.notes
