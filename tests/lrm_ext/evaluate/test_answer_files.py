"""Files of answers that are not as they should be: an error or a count, never a smaller total."""

import base64
import json

import official_files as files
import pytest

from llava.errors import DataError
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.scoring import score_file


def mme(key, text, gold, **more):
    return {"question_id": key.split("#")[0], "key": key, "text": text, "gold": gold,
            "category": "existence", "benchmark": "mme", "version": "v1", "lang": "en",
            "image": "a.jpg", "image_id": key.split("#")[0], **more}  # fmt: skip


PAIR = [mme("existence/1#0", "Yes", "Yes"), mme("existence/1#1", "No", "No")]


def score(tmp_path, rows, name="mme", **options):
    return score_file(name, files.write_lines(tmp_path / "answers.jsonl", rows), **options)


def test_a_whole_file(tmp_path):
    report = score(tmp_path, PAIR)
    assert (report.headline, report.version, report.lang) == (200, "v1", "en")
    assert report.details["num_categories"] == 1
    assert report.details["maximum_perception"] == 200


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PAIR[:1], "image existence/1 has 1 questions, which expect yes; expected two"),
        ([*PAIR, mme("existence/1#2", "No", "No")], "has 3 questions"),
        ([PAIR[0], mme("existence/1#1", "No", "Yes")], "has 2 questions, which expect yes, yes"),
        ([*PAIR, mme("existence/1#1", "Yes", "No")], "answered a second time, differently"),
        ([PAIR[0], {**PAIR[1], "version": "v2"}], r"several values of version: v1 .*v2"),
        ([PAIR[0], {**PAIR[1], "lang": "cs"}], "several values of lang"),
        ([PAIR[0], {**PAIR[1], "benchmark": "pope"}], r"jsonl:2: an answer to pope, expected mme"),
        ([PAIR[0], {**PAIR[1], "text": None}], "text is None; expected a string"),
        ([PAIR[0], {**PAIR[1], "text": 3}], "text is 3; expected a string"),
        ([PAIR[0], {**PAIR[1], "gold": ""}], "no expected answer"),
        ([PAIR[0], {**PAIR[1], "category": "dance"}], "unknown category dance; known: existence"),
        ([{"text": "x"}], "no question_id"),
        ([], "no answers in it"),
    ],
)
def test_errors(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        score(tmp_path, rows)


def test_equal_answers_count_once_and_the_last_may_win(tmp_path):
    report = score(tmp_path, [*PAIR, PAIR[1]])
    assert (report.headline, report.counts["answered_twice"]) == (200, 1)
    second = mme("existence/1#1", "Yes", "No")
    report = score(tmp_path, [*PAIR, second], last_wins=True)
    assert (report.headline, report.counts["questions"]) == (50, 2)


def test_mmes_two_questions_are_told_apart_without_a_key(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "key"} for row in PAIR]
    for prompt in (None, "", "q"):
        assert score(tmp_path, [{**row, "prompt": prompt} for row in rows]).headline == 200
    report = score(tmp_path, [*rows, rows[0]])
    assert (report.headline, report.counts["answered_twice"]) == (200, 1)


def test_popes_category_may_be_in_the_key(tmp_path):
    rows = [{"key": f"popular/{n}", "question_id": n, "text": "yes", "gold": "yes"}
            for n in range(2)]  # fmt: skip
    report = score(tmp_path, rows, "pope")
    assert report.details["per_category"] == {"popular": 1}
    assert report.details["num_categories_expected"] == 3


def test_missing_answers_are_wrong_where_they_are_allowed(tmp_path):
    other = [mme("existence/2#0", "Yes", "Yes"), mme("existence/2#1", "No", "No")]
    report = score(tmp_path, [*PAIR, *other[:1]], allow_missing=True)
    assert report.headline == pytest.approx((200 + 50) / 2)
    assert (report.counts["questions"], report.counts["missing"]) == (4, 1)


def test_empty_and_endless_answers_are_counted(tmp_path):
    rows = [
        mme("existence/1#0", "", "Yes"),
        mme("existence/1#1", "No " * 200, "No", finish_reason="length"),
    ]
    counts = score(tmp_path, rows).counts
    assert (counts["empty"], counts["cut"], counts["unparsed"]) == (1, 1, 1)


def mmbench(index, text, gold, options=("cat", "dog", "bird")):
    return {"question_id": str(index), "key": str(index), "text": text, "gold": gold,
            "category": "x", "options": list(options), "group": str(index % 10**6)}  # fmt: skip


THREE = [mmbench(5, "A", "A"), mmbench(1000005, "B", "B", ("bird", "cat", "dog")),
         mmbench(2000005, "C", "C", ("dog", "bird", "cat"))]  # fmt: skip


def test_rotations(tmp_path):
    assert score(tmp_path, THREE, "mmbench").headline == 100
    with pytest.raises(DataError, match=r"1 of 3 questions .* have no answer \(1000005\)"):
        score(tmp_path, [THREE[0], THREE[2]], "mmbench")
    report = score(tmp_path, [THREE[0], THREE[2]], "mmbench", allow_missing=True)
    assert (report.headline, report.counts["missing"], report.counts["questions"]) == (0, 1, 3)
    assert report.details["vanilla_accuracy"] == 1
    assert report.details["all_rows_accuracy"] == pytest.approx(2 / 3)
    wrong = {**THREE[1], "gold": "A"}
    with pytest.raises(DataError, match="expect different texts: bird, cat"):
        score(tmp_path, [THREE[0], wrong, THREE[2]], "mmbench")


def fewer_rotations(right):
    """Two questions of four options in three rotations; "none of these" stays the last option."""
    options = ["a red ball", "a blue box", "a green cup"]
    for base, num_right in right.items():
        for k in range(3):
            turned = [*options[k:], *options[:k], "none of these"]
            gold = turned.index(options[0])
            said = "ABCD"[gold if k < num_right else 3]
            yield mmbench(base + k * 10**6, said, "ABCD"[gold], turned)


@pytest.mark.parametrize("mode", [None, "vlmevalkit", "local"])
def test_fewer_rotations_than_options(tmp_path, mode):
    """As 53 questions of MMBench's dev file of 2023-07-12: the rounds are the rows that it has."""
    rows = list(fewer_rotations({7: 3, 8: 2}))
    report = score(tmp_path, rows, "mmbench", mode=mode)
    assert (report.headline, report.counts["missing"]) == (50, 0)
    assert report.details["circular_hits"] == {"7": 1, "8": 0}
    # on their own, answers cannot say that there was a last row
    assert score(tmp_path, [*rows[:2], *rows[3:]], "mmbench", mode=mode).headline == 50
    with pytest.raises(DataError, match=r"1 of 6 questions .*\(1000007\)"):
        score(tmp_path, [rows[0], *rows[2:]], "mmbench", mode=mode)
    with pytest.raises(DataError, match=r"1 of 6 questions .*\(7\)"):
        score(tmp_path, rows[1:], "mmbench", mode=mode)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_question_file_says_which_rotations_there_are(tmp_path, lost):
    rows = list(fewer_rotations({7: 3, 8: 3}))
    picture = base64.b64encode(files.picture(1)).decode()
    table = [
        {"index": row["key"], "question": "?", **dict(zip("ABCD", row["options"], strict=True)),
         "answer": row["gold"], "category": "x", "image": picture} for row in rows
    ]  # fmt: skip
    # a question may even begin with another row than its first
    tsv = files.write_tsv(tmp_path / "q.tsv", [*table[:3], *table[4:]])
    answers = [{"question_id": int(row["key"]), "text": row["text"]} for row in rows]
    del answers[3]
    assert score(tmp_path, answers, "mmbench", data=tsv).headline == 100
    del answers[lost]
    with pytest.raises(DataError, match=rf"1 of 5 questions .*\({rows[lost]['key']}\)"):
        score(tmp_path, answers, "mmbench", data=tsv)
    report = score(tmp_path, answers, "mmbench", data=tsv, allow_missing=True)
    assert (report.headline, report.counts["missing"]) == (50, 1)


@pytest.mark.parametrize("shape", ["list", "object", "columns"])
def test_nine_options_beside_an_answer(tmp_path, shape):
    options = dict(zip("ABCDEFGHI", map(str, range(9)), strict=True))
    row = {"question_id": 5, "text": "I", "gold": "I"}
    if shape == "columns":
        row |= options
    else:
        row["options"] = options if shape == "object" else list(options.values())
    for mode in ("vlmevalkit", "local"):
        (verdict,) = score(tmp_path, [row], "mmbench", mode=mode).verdicts
        assert (verdict.parsed, verdict.correct) == ("I", True)
    with pytest.raises(DataError, match="question 5: the answer is 'J'; expected one of A, B, C"):
        score(tmp_path, [{**row, "gold": "J"}], "mmbench")


def test_short_answers_may_have_options_and_be_no_letter(tmp_path):
    row = {"question_id": 1, "text": "Red.", "gold": "red", "options": ["red", "blue"]}
    assert score(tmp_path, [row], "answers").headline == 100


def test_unknown_categories_and_letters(tmp_path):
    row = {"question_id": "1", "text": "yes", "gold": "yes", "category": "rare"}
    with pytest.raises(DataError, match="unknown category rare; known: random, popular, adv"):
        score(tmp_path, [row], "pope")
    with pytest.raises(DataError, match="'maybe' is neither yes nor no"):
        score(tmp_path, [{**row, "gold": "maybe", "category": "random"}], "pope")
    with pytest.raises(DataError, match="expected answer is 'E'; expected one of A, B, C, D"):
        score(tmp_path, [{**row, "gold": "E"}], "seed_bench")


def test_llavas_answers_are_joined_to_the_benchmark(tmp_path):
    """MME's two questions about a picture share an id; the prompt tells them apart."""
    bundle = files.mme_bundle(tmp_path / "mme")
    import_benchmark("mme", bundle, tmp_path / "folder")
    rows = [json.loads(line) for line in bundle.read_text().splitlines()]
    golds = {"red": "Yes", "blue": "No", "Jaws": "Yes", "Alien": "No"}
    answers = [
        {
            "question_id": row["question_id"],
            "prompt": row["text"],
            "text": next(gold for word, gold in golds.items() if word in row["text"]),
            "answer_id": "x",
            "model_id": "m",
            "metadata": {},
        }
        for row in rows[::-1]
    ]
    for data in (bundle, tmp_path / "folder"):
        report = score(tmp_path, answers, data=data)
        assert report.details["per_category"] == {"color": 200, "posters": 200}
        with pytest.raises(DataError, match="1 of 4 questions .* no answer"):
            score(tmp_path, answers[1:], data=data)
        report = score(tmp_path, answers[1:], data=data, allow_missing=True)
        assert (report.headline, report.counts["missing"]) == (250, 1)
    strange = {**answers[0], "question_id": "color/9.jpg"}
    with pytest.raises(DataError, match=r"1 answers have no question .* color/9\.jpg"):
        score(tmp_path, [*answers, strange], data=bundle)


def test_popes_labels_are_joined_by_question_not_by_position(tmp_path):
    bundle = files.pope_bundle(tmp_path / "pope")
    rows = [json.loads(line) for line in bundle.read_text().splitlines()]
    labels = {(c, t.replace("imange", "image")): label for c, _, _, t, label in files.POPE}
    answers = [
        {
            "question_id": row["question_id"],
            "prompt": row["text"],
            "text": labels[row["category"], row["text"].split("\n")[0]].capitalize(),
        }
        for row in reversed(rows)
    ]
    report = score(tmp_path, answers, "pope", data=bundle)
    assert report.headline == 100 and report.details["num_categories"] == 3


def test_another_version_is_refused(tmp_path):
    folder = tmp_path / "folder"
    questions = import_benchmark("mmbench", files.mmbench_tsv(tmp_path / "dev.tsv"), folder)
    rows = [
        {"question_id": i.question_id, "text": i.answer, "version": questions.version}
        for i in questions.items
    ]
    assert score(tmp_path, rows, "mmbench", data=folder).headline == 100
    with pytest.raises(DataError, match="answers are to version old of mmbench"):
        score(tmp_path, [{**row, "version": "old"} for row in rows], "mmbench", data=folder)
