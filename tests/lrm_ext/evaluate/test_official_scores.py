"""Scores equal to those of the official scorers, as tests/golden/eval/scorers.json holds them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.evaluate import commands, mme, pope
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.reading import (
    infer_by_text,
    infer_lmms_eval,
    infer_vlmevalkit,
    yes_no_vlmevalkit,
)
from lrm_ext.evaluate.scoring import score_file

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "eval" / "scorers.json").read_text(encoding="utf-8")
)
FRUIT = {"A": "a red apple", "B": "a green pear", "C": "a yellow banana", "D": "a blue plum"}


@pytest.fixture
def score(tmp_path):
    def run(name, block, mode=None, change=lambda row: row, **options):
        rows = [change(dict(row)) for row in GOLDEN[block]["items"]]
        for number, row in enumerate(rows):
            row.setdefault("question_id", row.get("index", number))
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return score_file(name, path, mode=mode, **options)

    return run


def as_lrm_eval_writes(row):
    """A golden item with the field names of a file of answers."""
    row["text"] = row.pop("prediction")
    row["gold"] = row.pop("label", None) or row.pop("answer")
    if "data_type" in row:
        row["category"] = row.pop("data_type")
    if "A" in row:
        row["options"] = [row.pop(letter) for letter in "ABCD"]
        row["option_char"] = list("ABCD")
        row["key"] = row["question_id"] = str(row.pop("index"))
        row["group"] = str(int(row["key"]) % 10**6)
    return row


@pytest.mark.parametrize("case", GOLDEN["mme_parse"])
def test_mme_reads_as_lmms_eval(case):
    assert mme.parse_lmms_eval(case["pred"]) == case["label"]


@pytest.mark.parametrize("case", GOLDEN["mmbench_infer"])
def test_mmbench_infers_as_lmms_eval(case):
    text = case["prediction"]
    assert (infer_lmms_eval(text) or infer_by_text(text, case["options"])) == case["inferred"]


@pytest.mark.parametrize("change", [lambda row: row, as_lrm_eval_writes])
def test_mme(score, change):
    report = score("mme", "mme", change=change)
    golden = GOLDEN["mme"]
    assert report.mode == "lmms-eval" and report.headline_name == "perception"
    assert report.headline == pytest.approx(golden["perception"], abs=1e-9)
    assert report.details["perception"] == pytest.approx(golden["perception"], abs=1e-9)
    assert report.details["cognition"] == pytest.approx(golden["cognition"], abs=1e-9)
    assert report.details["per_category"] == pytest.approx(golden["per_category"], abs=1e-9)
    assert report.counts["questions"] == report.counts["answered"] == 112


@pytest.mark.parametrize("change", [lambda row: row, as_lrm_eval_writes])
@pytest.mark.parametrize("mode", [None, "llava", "official"])
def test_pope(score, mode, change):
    report = score("pope", "pope", mode, change)
    golden = {k: v for k, v in GOLDEN["pope"].items() if k not in ("items", "parsed")}
    assert [v.parsed for v in report.verdicts] == GOLDEN["pope"]["parsed"]
    assert {key: report.details[key] for key in golden} == pytest.approx(golden, abs=1e-9)
    assert report.headline == pytest.approx(100 * golden["f1"], abs=1e-9)
    assert report.details["pooled"]["f1"] == pytest.approx(golden["f1"], abs=1e-9)


def test_pope_as_lmms_eval(score):
    found = score("pope", "pope", "lmms-eval").details
    assert found["accuracy"] == pytest.approx(8 / 60)
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 6)
    assert found["yes_ratio_gt"] == pytest.approx(32 / 60)
    assert found["yes_ratio"] < found["yes_ratio_gt"]


@pytest.mark.parametrize("change", [lambda row: row, as_lrm_eval_writes])
def test_seed_bench(score, change):
    golden = GOLDEN["seed"]
    report = score("seed_bench", "seed", change=change)
    assert report.headline == pytest.approx(100 * golden["all"], abs=1e-9)
    assert report.details["all"] == pytest.approx(golden["all"], abs=1e-9)
    assert report.details["per_dimension"] == pytest.approx(golden["per_dimension"], abs=1e-9)
    assert score("seed", "seed", "llava").headline == pytest.approx(7.5)


@pytest.mark.parametrize("change", [lambda row: row, as_lrm_eval_writes])
@pytest.mark.parametrize("mode", [None, "llava", "official", "local"])
def test_mmbench(score, mode, change):
    golden = GOLDEN["mmbench"]
    report = score("mmbench", "mmbench", mode, change)
    assert report.headline == pytest.approx(100 * golden["circular_accuracy"], abs=1e-9)
    assert report.details["circular_hits"] == golden["circular_hits"]
    assert report.details["vanilla_accuracy"] == golden["vanilla_accuracy"]
    assert report.details["all_rows_accuracy"] == pytest.approx(43 / 48)


# Answers that the scorers of MME, POPE, SEED-Bench and MMBench read in ways of their own, beyond
# those of the golden file.
@pytest.mark.parametrize(
    ("text", "lmms", "official"),
    [
        ("Yes", "yes", "yes"),
        ("yes.", "yes", "yes"),
        ("None", "no", "no"),
        ("Nope", "no", "no"),
        ("Y", "yes", "other"),
        ("n", "no", "other"),
        ("y.", "yes", "other"),
        ("  Yes", "yes", "yes"),
        ("The answer is yes", "other", "other"),
        ("It is not", "other", "other"),
        ("yes no", "yes", "yes"),
        ("Eyes", "yes", "yes"),
        ("know", "no", "no"),
        ("Nous voyons", "no", "no"),
        ("Notre", "no", "no"),
    ],
)
def test_mme_by_the_table(text, lmms, official):
    assert mme.parse_lmms_eval(text) == lmms
    # two blanks and "Yes": its first four characters are "  Ye", which hold no yes
    expected = "other" if text.startswith("  ") else official
    assert mme.parse_official(text) == expected


@pytest.mark.parametrize(
    ("text", "llava", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("No", "no", "no"),
        (" No.", "no", "unparsed"),
        ("No, I see none. Yes.", "no", "unparsed"),
        ("yes, no", "no", "unparsed"),
        ("Not here, sorry", "yes", "unparsed"),
        ("NO", "yes", "no"),
        ("No!", "yes", "unparsed"),
        ("No\n", "yes", "no"),
        ("isn't", "yes", "unparsed"),
        ("", "yes", "unparsed"),
    ],
)
def test_pope_by_the_table(text, llava, lmms):
    assert pope.parse_official(text) == llava
    assert (pope.parse_lmms_eval(text) or "unparsed") == lmms


@pytest.mark.parametrize(
    ("text", "lmms", "llava"),
    [
        ("A", "A", "A"),
        ("a", "A", None),
        (" c", "C", None),
        ("B.", "B", None),
        ("C. a red car", "C", None),
        ("", None, None),
        ("(B)", None, None),
        ("The answer is A", None, None),
        ("Dog", "D", None),
        ("a dog", "A", None),
        ("\uff21", None, None),
        ("\u0410", None, None),
    ],
)
def test_seed_bench_by_the_table(text, lmms, llava, tmp_path):
    rows = [
        {"question_id": letter, "category": "x", "gold": letter, "text": text} for letter in "ABCD"
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for mode, letter in (("lmms-eval", lmms), ("llava", llava)):
        verdicts = score_file("seed_bench", path, mode=mode).verdicts
        assert [v.key for v in verdicts if v.correct] == ([letter] if letter else [])


def test_mmbench_by_the_table():
    assert infer_lmms_eval("B, not C.") == "C", "X. is tried before X,"
    assert infer_lmms_eval("A yellow banana") == "A", "three words"
    assert infer_lmms_eval("b") is None
    assert infer_by_text("101", {"A": "1", "B": "7"}) == "A", "a plain substring"


def test_vlmevalkit_rules():
    assert infer_vlmevalkit("The answer is (B).", FRUIT) == "B"
    assert (
        infer_vlmevalkit("I choose D, as it is what one can see in the picture here", FRUIT) is None
    )
    assert infer_vlmevalkit("A yellow banana", FRUIT) == "A"
    assert infer_vlmevalkit("answer is c: it is not A", FRUIT) in ("A", "C")
    assert infer_vlmevalkit("a blue plum", FRUIT) == "D"
    assert infer_vlmevalkit("a blue plum" + " and more" * 20, FRUIT) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("**B**", "B"),
        ("{B}", "B"),
        ("#B!", "B"),
        ("b", None),
        ("B one two three", "B"),
        ("B one two three four", None),
        ("B one two three or B", None),  # its first place is not among the last four
        ("B or C", None),
        ("It is a dog: B", "B"),
        ("A dog sits there, on the left", None),
        ("B-one", None),
        ("B's", None),
        ("E", None),  # there is no such option
        ("The answer is C because of what is on the left side", "C"),
        ("The answer is **C** because of what is on the left side", "C"),
        ("The answer is   C because of what is on the left side", "C"),
        ("the ANSWER IS c because of what is on the left side", "C"),
        ("the answer is dog-like in most of the pictures here", "D"),  # no word boundary
        ("the answer is not in any of the pictures that are here", None),
        ("answer: C because of what is on the left side", None),
        ("It is a yellow banana", "C"),
        ("It is a yellow banana, not a green pear", None),
        ("A yellow banana lies on the table", "C"),  # an A too far from the end; the text decides
        ("", None),
    ],
)
def test_letters_as_vlmevalkit(text, letter):
    assert infer_vlmevalkit(text, FRUIT) == letter


def test_vlmevalkit_knows_as_many_letters_as_there_are_options():
    options = {letter: f"number {n}" for n, letter in enumerate("ABCDEFGHI")}
    assert infer_vlmevalkit("(I)", options) == "I"
    assert infer_vlmevalkit("I think it is a dog", options) is None
    assert infer_vlmevalkit("The answer is I for all of the reasons given", options) == "I"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Well, YES!", "yes"),
        ("yes and no", "other"),
        ("**Yes**", "other"),
        ("Yes: there is one.", "other"),
        ("Yes,it is.", "yes"),
        ("No(there is none)", "no"),
        ("<answer>Yes</answer>", "yes"),
        ("\\boxed{Yes}", "yes"),
        ("Yes-there is", "yes"),
        ("Yes - there is", "yes"),
        ("Yes-there is - here", "other"),  # one of the hyphens is beside a blank: both are deleted
        ("well,yes, it is", "other"),
        ("Yes/no", "other"),
        ("No,there are 1,000 of them", "other"),  # with a comma in a number all marks are deleted
        ("No, there are 1,000 of them", "no"),
        ("yes.it is", "other"),
        ("Yes\nit is", "yes"),
        ("Yes,\nit is", "yes"),
        ("'Yes'", "other"),
        ("[No]", "no"),
        ("y", "other"),
        ("nothing", "other"),
        ("", "other"),
    ],
)
def test_yes_and_no_as_vlmevalkit(text, label):
    assert (yes_no_vlmevalkit(text) or "other") == label


def test_modes_that_cannot_be():
    with pytest.raises(ConfigError, match="ranks the options by their likelihood"):
        get_kind("seed_bench").mode_for("en", "official")
    with pytest.raises(ConfigError, match="no mode 'gpt'; choose from lmms-eval"):
        get_kind("mme").mode_for("en", "gpt")
    assert get_kind("mme").mode_for("cs") == "local"
    assert get_kind("mme").mode_for("cs", "lmms-eval") == "lmms-eval"
    with pytest.raises(ConfigError, match="unknown benchmark 'imagenet'; choose from mme, pope"):
        get_kind("imagenet")


@pytest.mark.parametrize(
    ("name", "block", "field", "scale"),
    [
        ("mme", "mme", "perception", 1),
        ("pope", "pope", "f1", 100),
        ("seed_bench", "seed", "all", 100),
        ("mmbench", "mmbench", "circular_accuracy", 100),
    ],
)
def test_command_line(tmp_path, name, block, field, scale):
    path = tmp_path / "answers.jsonl"
    rows = [{"question_id": n, **row} for n, row in enumerate(GOLDEN[block]["items"])]
    rows = [as_lrm_eval_writes(row) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["benchmark", "score", name, "--predictions", str(path)]
    result = CliRunner().invoke(commands.app, [*arguments, "--json"], catch_exceptions=False)
    content = json.loads(result.output)
    assert content["headline"] == pytest.approx(scale * GOLDEN[block][field], abs=1e-6)
    assert content[field] == pytest.approx(GOLDEN[block][field], abs=1e-9)
    assert content["interval"]["low"] < content["headline"] < content["interval"]["high"]
    assert content["counts"]["answered"] == content["counts"]["questions"] == len(rows)
    result = CliRunner().invoke(
        commands.app, [*arguments, "--no-intervals"], catch_exceptions=False
    )
    assert f"{len(rows)} of {len(rows)} questions are answered" in result.output
