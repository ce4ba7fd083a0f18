"""The scorers of POPE, ScienceQA and TextVQA, and the accuracies they are made of."""

import json
from pathlib import Path

import pytest

from llava.errors import ConfigError, DataError
from llava.eval import eval_pope, eval_science_qa, eval_textvqa, m4c_evaluator, records

GOLDEN = Path(__file__).parents[2] / "golden" / "eval" / "llava_scorers.json"


@pytest.fixture(scope="module")
def pope():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))["pope"]


def test_pope_reads_answers_as_the_official_script(pope):
    assert [eval_pope.parse_answer(item["prediction"]) for item in pope["items"]] == pope["parsed"]
    for text in ("NO", "No!", "Not here, sorry", "isn't", ""):
        assert eval_pope.parse_answer(text) == "yes"
    for text in ("yes, no", "No, I see none. Yes.", "There is not"):
        assert eval_pope.parse_answer(text) == "no"


def test_pope_counts_and_rates(pope):
    items = pope["items"]
    score = eval_pope.score_answers(
        (item["prediction"] for item in items), (item["label"] for item in items)
    )
    assert (score.tp, score.fp, score.tn, score.fn) == tuple(
        pope[name] for name in ("TP", "FP", "TN", "FN")
    )
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert getattr(score, name) == pytest.approx(pope[name], abs=1e-9)


@pytest.fixture
def pope_files(write_lines, tmp_path):
    """Write three questions about one picture, their answers and labels; return the flags."""

    def write(answers=("Yes", "No", "Yes"), labels=("yes", "no", "no"), things="abc", **more):
        asked = [f"Is there a {thing} in the image?" for thing in "abc"]
        instruction = "\nAnswer the question using a single word or phrase."
        questions = [
            {"question_id": i, "image": "1.jpg", "text": text + instruction, "category": "random"}
            for i, text in enumerate(asked)
        ]
        write_lines("q.jsonl", questions)
        write_lines("a.jsonl", [{"question_id": i, "text": a} for i, a in enumerate(answers)])
        lines = [
            {
                "question_id": 1,
                "image": "1.jpg",
                "text": f"Is there a {t} in the imange?",
                "label": v,
            }
            for t, v in zip(things, labels, strict=True)
        ]
        write_lines("ann/coco_pope_random.json", [{**line, **more} for line in lines])
        flags = {"annotation-dir": "ann", "question-file": "q.jsonl", "result-file": "a.jsonl"}
        return [w for name, file in flags.items() for w in (f"--{name}", str(tmp_path / file))]

    return write


def test_pope_on_the_terminal(pope_files, capsys):
    eval_pope.main(pope_files())
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["Category: random, # samples: 3", "TP\tFP\tTN\tFN", "1\t1\t1\t0"]
    assert out[3] == f"Accuracy: {2 / 3}"
    assert out[8] == "0.667, 0.667, 0.500, 1.000, 0.667"


def test_pope_matches_labels_by_question(pope_files, capsys):
    eval_pope.main(pope_files(things="cab", labels=("no", "yes", "no")))
    assert "1\t1\t1\t0" in capsys.readouterr().out


def test_pope_without_a_yes(pope_files, capsys):
    eval_pope.main(pope_files(answers=("No", "No", "No")))
    assert "0.000, 0.667, 0.000, 0.000, 0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ("Yes", "No")}, "1 questions of random have no answer: 2"),
        ({"things": "ab", "labels": ("yes", "no")}, "2 labels, but 3 questions"),
        ({"things": "abd"}, "1 questions have no label in .*: 2"),
        ({"things": "abb", "labels": ("yes", "no", "no")}, "1 questions have no label"),
        ({"labels": ("yes", "no", "maybe")}, "coco_pope_random.json:3: label is 'maybe'"),
    ],
)
def test_pope_refuses(pope_files, changes, message):
    with pytest.raises(SystemExit, match=message):
        eval_pope.main(pope_files(**changes))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("C. because", "C"),
        ("So it is. The answer is D.", "D"),
        ("The answer is D, as", "D"),
        ("The answer is Dog", "D"),
        ("The answer is D", "FAILED"),
        ("The answer is D\n", "FAILED"),
        ("The answer is A, not B. The answer is B?", "FAILED"),
        ("The answer is A. No. The answer is B.", "FAILED"),
        ("F", "FAILED"),
        ("C.", "FAILED"),
        ("b", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_science_answers(text, letter):
    assert eval_science_qa.parse_answer(text) == letter


@pytest.fixture
def science_dir(write_json, tmp_path):
    problem = {"question": "Q", "choices": ["x", "y"], "answer": 1, "hint": ""}
    problems = {str(i): {**problem, "answer": i % 2} for i in range(5)}
    write_json("sqa/problems.json", problems)
    write_json("sqa/pid_splits.json", {"test": ["0", "1", "2", "3"], "train": ["4"]})
    return tmp_path / "sqa"


@pytest.fixture
def run_science(science_dir, write_lines, tmp_path):
    def run(*more):
        answers = [
            {"question_id": "0", "prompt": "<image>\nQ", "text": "A"},
            {"question_id": "1", "prompt": "<image>\nQ", "text": "E"},
            {"question_id": "2", "prompt": "Q", "text": "The answer is A."},
        ]
        flags = {
            "base-dir": science_dir,
            "result-file": write_lines("a.jsonl", answers),
            "output-file": tmp_path / "out" / "o.json",
            "output-result": tmp_path / "out" / "r.json",
        }
        words = [w for name, value in flags.items() for w in (f"--{name}", str(value))]
        eval_science_qa.main([*words, *more])
        return [json.loads((tmp_path / "out" / name).read_text()) for name in ("o.json", "r.json")]

    return run


def test_science(run_science, capsys):
    sides, result = run_science()
    assert capsys.readouterr().out.strip() == (
        "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 50.00%"
    )
    assert [item["question_id"] for item in sides["correct"]] == ["0", "2"]
    assert sides["incorrect"][0] == {
        "question_id": "1",
        "parsed_ans": "E",
        "ground_truth": "B",
        "question": "<image>\nQ",
        "pred": "E",
        "is_multimodal": True,
    }
    assert (result["acc"], result["correct"], result["count"]) == (50.0, 2, 4)
    assert result["results"] == {"0": 0, "1": -1, "2": 0, "3": -1}
    assert result["outputs"] == {"0": "A", "1": "E", "2": "The answer is A.", "3": "FAILED"}


def test_science_refuses(run_science, science_dir):
    with pytest.raises(SystemExit, match="no key 'val'; found: test, train"):
        run_science("--split", "val")
    (science_dir / "problems.json").write_text('{"0": {"choices": ["x"], "answer": 3}}')
    with pytest.raises(SystemExit, match="problem 0: answer 3, but there are 1 choices|no key '1'"):
        run_science()


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What IS it?\nAnswer the question using a single word or phrase.", "what is it?"),
        ("What is it?\nReference OCR token: A, B\nAnswer.", "what is it?"),
        ("Reference OCR token: A, B\nWhat is it?\nAnswer.", "what is it?"),
        ("OCR tokens: A B. Question: What is it? Short answer:", "what is it?"),
    ],
)
def test_textvqa_question_from_the_prompt(prompt, question):
    assert eval_textvqa.prompt_processor(prompt) == question


@pytest.mark.parametrize("prompt", ["What?", "a\nb\nc", "OCR tokens: A"])
def test_textvqa_prompt_of_another_kind(prompt):
    with pytest.raises(DataError, match="cannot tell the question"):
        eval_textvqa.prompt_processor(prompt)


def test_textvqa(write_json, write_lines, tmp_path, capsys):
    entry = {"image_id": "i", "question": "What?", "answers": ["cat"] * 2 + ["dog"] * 8}
    annotations = str(write_json("ann.json", {"data": [entry]}))
    answer = {"question_id": "i", "prompt": "What?\nAnswer.", "text": "The cat"}
    write_lines("r/one.jsonl", [answer])
    write_lines("r/two.jsonl", [answer, {**answer, "text": "dog"}])
    eval_textvqa.main(["--annotation-file", annotations, "--result-dir", str(tmp_path / "r")])
    assert capsys.readouterr().out == (
        "one\nSamples: 1\nAccuracy: 60.00%\n\ntwo\nSamples: 2\nAccuracy: 80.00%\n\n"
    )
    bad = write_lines("bad.jsonl", [{**answer, "prompt": "Why?\nAnswer."}])
    with pytest.raises(
        SystemExit, match="bad.jsonl:1: no annotation for image i and question 'why"
    ):
        eval_textvqa.main(["--annotation-file", annotations, "--result-file", str(bad)])
    with pytest.raises(SystemExit, match="give --result-file"):
        eval_textvqa.main(["--annotation-file", annotations])


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The two dogs.", "2 dogs"),
        ("A, B and C?", "b and c"),
        ("3.5 m", "3.5 m"),
        ("stop-sign", "stop sign"),
        ("left - right", "left right"),
        ("1,000 (approx)", "1000 approx"),
        ("Dont go", "don't go"),
        ("couldnt've", "couldn't've"),
        ("John's\thouse\n", "john 's house"),
        ("none", "0"),
        ("e.g. this", "eg this"),
        ("", ""),
    ],
)
def test_answer_normalisation(answer, normalised):
    assert m4c_evaluator.EvalAIAnswerProcessor()(answer) == normalised


def test_vqa_accuracy_of_ten_references():
    evaluator = m4c_evaluator.TextVQAAccuracyEvaluator()
    for count, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        references = ["yes"] * count + ["no"] * (10 - count)
        entry = {"pred_answer": "Yes.", "gt_answers": references}
        assert evaluator.eval_pred_list([entry]) == pytest.approx(expected)
    with pytest.raises(DataError, match="9 reference answers; expected 10"):
        evaluator.eval_pred_list([{"pred_answer": "a", "gt_answers": ["a"] * 9}])
    with pytest.raises(DataError, match="no answers"):
        evaluator.eval_pred_list([])


def test_st_vqa():
    entries = [
        {"pred_answer": "The Cat", "gt_answers": ["dog", "cat"]},
        {"pred_answer": "cart", "gt_answers": ["cat"]},
    ]
    assert m4c_evaluator.STVQAAccuracyEvaluator().eval_pred_list(entries) == 0.5
    anls = m4c_evaluator.STVQAANLSEvaluator()
    assert anls.get_anls("cart", "cat") == 0.75
    assert anls.get_anls("abcd", "axyz") == 0.0
    assert anls.get_anls(" Cat", "cat") == anls.get_anls("", "") == 1.0
    assert anls.eval_pred_list(entries[1:]) == 0.75
    assert m4c_evaluator.edit_distance("kitten", "sitting") == 3


def test_textcaps_needs_its_package():
    with pytest.raises(ConfigError, match="pip install pycocoevalcap"):
        m4c_evaluator.TextCapsBleu4Evaluator()


def test_line_ends_of_windows_are_read_as_any_other(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_bytes(b'index\tquestion\r\n1\t"Look.\r\nWhat is it?"\r\n')
    assert records.read_text(path).count("\r") == 0
    assert records.read_tsv(path) == [
        (f"{path}:3", {"index": "1", "question": "Look.\nWhat is it?"})
    ]
