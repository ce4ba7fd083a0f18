"""GPT as a judge and as a baseline; the API is a server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava.eval import (
    eval_gpt_review,
    eval_gpt_review_bench,
    eval_gpt_review_visual,
    eval_science_qa_gpt4,
    eval_science_qa_gpt4_requery,
    qa_baseline_gpt35,
    summarize_gpt_review,
)

RULES = Path(eval_gpt_review.__file__).with_name("table") / "rule.json"


class FakeApi:
    """Replies to each request with what `reply` makes of it: `(status, text)`."""

    def __init__(self):
        self.requests = []
        self.reply = lambda body: (200, "8 6\nWhy.")
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.requests.append((self.path, self.headers["authorization"], body))
                status, text = api.reply(body)
                data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def contents(self):
        return sorted(body["messages"][1]["content"] for _, _, body in self.requests)


@pytest.fixture
def api(monkeypatch, quick_retries):
    fake = FakeApi()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    host, port = fake.server.server_address
    monkeypatch.setenv("OPENAI_API_BASE", f"http://{host}:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def review(write_lines, tmp_path):
    """Run a review script on two questions."""

    def run(module, *words, categories=("conv", "detail"), **contexts):
        asked = [
            {"question_id": i, "text": f"Q{i}", "image": "a.jpg", "category": category}
            for i, category in enumerate(categories)
        ]
        sides = [
            [{"question_id": i, "text": f"{side}{i}", "answer_id": f"id-{side}{i}"} for i in (0, 1)]
            for side in "XY"
        ]
        answers = [str(write_lines(f"{n}.jsonl", side)) for n, side in enumerate(sides)]
        flags = ["-q", str(write_lines("q.jsonl", asked)), "-a", *answers, "-r", str(RULES)]
        flags += ["-o", str(tmp_path / "r.jsonl"), *words]
        if contexts:
            flags += ["-c", str(write_lines("c.jsonl", [{"image": "a.jpg", **contexts}]))]
        module.main(flags)

    return run


def test_review_of_texts(api, review, tmp_path, read_lines):
    review(eval_gpt_review, categories=("math", "unheard of"))
    lines = read_lines(tmp_path / "r.jsonl")
    assert lines[0] == {
        "id": 1,
        "question_id": 0,
        "answer1_id": "id-X0",
        "answer2_id": "id-Y0",
        "category": "math",
        "content": "8 6\nWhy.",
        "tuple": [8.0, 6.0],
    }
    assert lines[1]["category"] == "default"
    path, authorization, body = api.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer key")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4-0314", 0.2, 1024)
    assert body["messages"][0] == {"role": "system", "content": eval_gpt_review.SYSTEM}
    prompt = json.loads(RULES.read_text())["math"]["prompt"]
    assert api.contents[0] == (
        "[Question]\nQ0\n\n[Assistant 1]\nX0\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\nY0\n\n[End of Assistant 2]\n\n[System]\n{prompt}\n\n"
    )


def test_review_of_pictures(api, review):
    boxes = [{"category": "cat", "bbox": [0, 0.5]}]
    review(eval_gpt_review_visual, captions=["One.", "Two."], instances=boxes)
    assert api.contents[0].startswith("[Context]\nOne.\nTwo.\ncat: [0, 0.5]\n\n[Question]\nQ0")


@pytest.mark.parametrize("caption", ["One.\nTwo.", ["One.", "Two."]])
def test_review_of_llava_bench(api, review, tmp_path, read_lines, caption):
    review(eval_gpt_review_bench, caption=caption)
    assert api.contents[0].startswith("[Context]\nOne.\nTwo.\n\n[Question]\nQ0")
    assert [line["category"] for line in read_lines(tmp_path / "r.jsonl")] == [
        "llava_bench_conv",
        "llava_bench_detail",
    ]


def test_review_goes_on(api, review, tmp_path):
    review(eval_gpt_review)
    whole = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "r.jsonl").write_bytes(whole[:-20])
    review(eval_gpt_review)
    assert (tmp_path / "r.jsonl").read_bytes() == whole and len(api.requests) == 3
    with pytest.raises(SystemExit, match="of another run"):
        review(eval_gpt_review, "--model", "other")


def test_review_refuses(api, review, write_lines, tmp_path, monkeypatch):
    with pytest.raises(
        SystemExit, match="q.jsonl:1: no rule for 'llava_bench_odd'; there are coding"
    ):
        review(eval_gpt_review_bench, categories=("odd", "conv"), caption="One.")
    with pytest.raises(SystemExit, match="caption is 3; expected a text"):
        review(eval_gpt_review_bench, caption=3)
    with pytest.raises(SystemExit, match="2 images have no context: a.jpg, a.jpg"):
        review(eval_gpt_review_bench, caption="One.", image="b.jpg")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SystemExit, match="OPENAI_API_KEY is not set"):
        review(eval_gpt_review)
    assert api.requests == []


def test_answers_in_another_order(write_lines):
    lines = [{"question_id": i, "text": "t"} for i in (0, 1)]
    files = [write_lines("q", lines), write_lines("a", lines), write_lines("b", lines[::-1])]
    with pytest.raises(ValueError, match="b:1: answer to question 1, expected 0"):
        eval_gpt_review.read_pairs(str(files[0]), [str(path) for path in files[1:]])
    write_lines("b", lines[:1])
    with pytest.raises(ValueError, match="b: 1 answers to 2 questions"):
        eval_gpt_review.read_pairs(str(files[0]), [str(path) for path in files[1:]])


def test_a_judge_may_think(api, review, tmp_path, read_lines):
    api.reply = lambda body: (200, "<think>\n1 2\n</think>\n8 6\nWhy.")
    review(eval_gpt_review)
    assert [line["tuple"] for line in read_lines(tmp_path / "r.jsonl")] == [[8.0, 6.0]] * 2


def test_a_review_that_is_refused_has_no_scores(api, review, tmp_path, read_lines, caplog):
    def reply(body):
        refused = "Q0" in body["messages"][1]["content"]
        return (400, "stopped by the content filter") if refused else (200, "8 6")

    api.reply = reply
    review(eval_gpt_review)
    assert [(r["id"], r["content"], r["tuple"]) for r in read_lines(tmp_path / "r.jsonl")] == [
        (1, "", [-1.0, -1.0]),
        (2, "8 6", [8.0, 6.0]),
    ]
    assert "1 of 2 refused" in caplog.text
    review(eval_gpt_review)
    assert len(api.requests) == 2


def test_a_review_that_was_paid_is_kept(api, review, tmp_path, read_lines):
    """The first question fails after the second one was answered."""
    answered = threading.Event()

    def reply(body):
        if "Q1" in body["messages"][1]["content"]:
            answered.set()
            return 200, "8 6"
        answered.wait(5)
        return 401, "bad key"

    api.reply = reply
    with pytest.raises(SystemExit, match="key is refused"):
        review(eval_gpt_review)
    assert [line["question_id"] for line in read_lines(tmp_path / "r.jsonl")] == [1]
    api.reply = lambda body: (200, "8 6")
    review(eval_gpt_review)
    assert [line["id"] for line in read_lines(tmp_path / "r.jsonl")] == [1, 2]
    assert len(api.requests) == 3
    (tmp_path / "r.jsonl").write_text('{"id": 1, "question_id": 1}\n')
    with pytest.raises(SystemExit, match="r.jsonl:1: review 1, of question 1, is not of these"):
        review(eval_gpt_review)


def test_a_judge_that_takes_other_fields(api, review, tmp_path):
    def reply(body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                return 400, f"unsupported parameter: {name}"
        return 200, "8 6"

    api.reply = reply
    review(eval_gpt_review)
    assert len(api.requests) == 4
    flags = ("--max-tokens-field", "max_completion_tokens", "--no-temperature")
    review(eval_gpt_review, "--fresh", *flags)
    assert len(api.requests) == 6 and api.requests[-1][2]["max_completion_tokens"] == 1024
    with pytest.raises(SystemExit, match='temperature was "the service\'s own" and is None'):
        review(eval_gpt_review)


def test_busy_and_refusing_service(api, review, tmp_path):
    replies = iter([(429, ""), (503, "")])
    api.reply = lambda body: next(replies, (200, "8 6"))
    review(eval_gpt_review)
    assert len(api.requests) == 4
    api.reply = lambda body: (401, "bad key")
    with pytest.raises(SystemExit, match="key is refused: HTTP 401: .*bad key"):
        review(eval_gpt_review, "--fresh")
    api.reply = lambda body: (500, "down")
    with pytest.raises(SystemExit, match="no review from http.*HTTP 500: .*10 tries"):
        review(eval_gpt_review, "--fresh")


@pytest.mark.parametrize(
    ("review_text", "scores"),
    [
        ("8 9.5\nWhy.", [8.0, 9.5]),
        ("8, 9", [8.0, 9.0]),
        ("8,9", [8.0, 9.0]),
        ("8", [-1.0, -1.0]),
        ("8 9 10", [-1.0, -1.0]),
        ("Scores: 8 9", [-1.0, -1.0]),
        ("", [-1.0, -1.0]),
    ],
)
def test_scores_of_a_review(review_text, scores):
    assert eval_gpt_review.parse_score(review_text) == scores


def test_summary(write_lines, tmp_path, capsys):
    reviews = [
        {"question_id": 1, "category": "b", "tuple": [8.0, 6.0]},
        {"question_id": 2, "category": "a", "tuple": [4.0, 5.0]},
        {"question_id": 3, "category": "a", "tuple": [-1, -1]},
        {"question_id": 4, "category": "a", "tuple": [9.0, 0.0]},
    ]
    write_lines("x/review_1.jsonl", reviews)
    write_lines("x/review_2-0613.jsonl", reviews[:1])
    write_lines("x/other.jsonl", [])
    summarize_gpt_review.main(["-d", str(tmp_path / "x"), "-v", "0314", "-i", "4"])
    assert capsys.readouterr().out.splitlines()[:4] == [
        "review_1",
        "a 125.0 40.0 50.0",
        "all 91.7 60.0 55.0",
        "b 75.0 80.0 60.0",
    ]
    summarize_gpt_review.main(["-d", str(tmp_path / "x"), "-s", "review_2"])
    assert capsys.readouterr().out.splitlines()[0] == "review_2-0613"
    with pytest.raises(SystemExit, match="no reviews found"):
        summarize_gpt_review.main(["-d", str(tmp_path / "x"), "-s", "nothing"])
    with pytest.raises(SystemExit, match="no review with scores"):
        summarize_gpt_review.main(["-f", str(write_lines("r.jsonl", reviews[2:3]))])


# Sums of the fifteen pairs of LLaVA's released review of its 13B model in category "detail": the
# means are 8.8 and 4.6333, and LLaVA prints 52.6 for 4.633 / 8.8, not 52.7 for 4.6333 / 8.8.
RELEASED = """9 6.5, 9 6, 9 7, 8 3, 9 6, 8 4, 9 6, 9 3, 9 3, 9 3, 9 2, 8 5, 9 5, 9 6, 9 4"""


def test_summary_rounds_the_means_first(write_lines, capsys):
    pairs = [[float(score) for score in pair.split()] for pair in RELEASED.split(",")]
    assert 100 * sum(p[1] for p in pairs) / sum(p[0] for p in pairs) == pytest.approx(52.6515)
    reviews = [{"question_id": i, "category": "d", "tuple": p} for i, p in enumerate(pairs)]
    summarize_gpt_review.main(["-f", str(write_lines("r.jsonl", reviews))])
    assert capsys.readouterr().out.splitlines()[1:3] == ["all 52.6 88.0 46.3", "d 52.6 88.0 46.3"]


def test_baseline(api, write_lines, tmp_path):
    asked = [{"question_id": i, "text": f"Q{i}"} for i in (10, 9)]
    api.reply = lambda body: (200 if body["messages"][1]["content"] == "Q9" else 500, "yes")
    qa_baseline_gpt35.main(["-q", str(write_lines("q", asked)), "-o", str(tmp_path / "a")])
    text = (tmp_path / "a").read_text()
    lines = [json.loads(line) for line in text.split("\n")]
    assert [(line["question_id"], line["text"]) for line in lines] == [(9, "yes"), (10, "#ERROR#")]
    assert {line["model_id"] for line in lines} == {"gpt-3.5-turbo:20230327"}
    assert len(api.requests) == 4


def test_a_baseline_keeps_what_was_paid(api, write_lines, tmp_path):
    answered = threading.Event()

    def reply(body):
        if body["messages"][1]["content"] == "Q1":
            answered.set()
            return 200, "yes"
        answered.wait(5)
        return 401, "bad key"

    api.reply = reply
    asked = [{"question_id": i, "text": f"Q{i}"} for i in (0, 1)]
    with pytest.raises(SystemExit, match="key is refused.*; 1 answers are in .*a.partial"):
        qa_baseline_gpt35.main(["-q", str(write_lines("q", asked)), "-o", str(tmp_path / "a")])
    assert json.loads((tmp_path / "a.partial").read_text())["text"] == "yes"
    assert not (tmp_path / "a").exists()


@pytest.fixture
def ensemble(write_json, write_lines, tmp_path):
    """Four problems with the answer A; GPT-4 and the model agree, disagree, fail."""
    problem = {"question": "Q", "choices": ["x", "y"], "answer": 0}
    write_json("problems.json", {str(i): problem for i in range(4)})
    write_json("pid_splits.json", {"test": ["0", "1", "2", "3"]})
    gpt4 = write_json("g.json", {"outputs": {"0": "A", "1": "B", "2": "Dunno", "3": "B"}})
    texts = ("A", "A", "A", "none")
    ours = [
        {"question_id": str(i), "prompt": "<image>\nQ", "text": text}
        for i, text in enumerate(texts)
    ]
    files = {"base-dir": tmp_path, "gpt4-result": gpt4, "our-result": write_lines("a", ours)}
    return [word for name, file in files.items() for word in (f"--{name}", str(file))]


def test_science_with_gpt4(ensemble, capsys):
    eval_science_qa_gpt4.main(ensemble)
    out = capsys.readouterr().out
    assert out.startswith("Total: 4, GPT-4 failed: 1, Correct: 2, Accuracy: 50.00%")
    eval_science_qa_gpt4.main(ensemble)
    assert capsys.readouterr().out == out


def test_science_with_gpt4_as_judge(ensemble, write_lines, tmp_path, capsys):
    second = [{"question_id": "1", "text": "The answer is A."}, {"question_id": "0", "text": "B"}]
    flags = ["--requery-result", str(write_lines("r", second))]
    flags += ["--output-result", str(tmp_path / "out" / "o.json")]
    eval_science_qa_gpt4_requery.main([*ensemble, *flags])
    assert "Correct: 3, Accuracy: 75.00%, IMG-Accuracy: 75.00%" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "o.json").read_text())
    assert (result["acc"], result["correct"], result["count"]) == (75.0, 3, 4)
    assert result["results"] == {"0": 0, "1": 0, "2": 0, "3": 1}
