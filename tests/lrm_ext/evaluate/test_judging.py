"""A model judges answers: rubrics, strict reading, money, agreement; the service misbehaves."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import get_args, get_type_hints

import pytest
from fake_chat import Answer, ChatService, chat_answer
from PIL import Image
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.evaluate.compare import compare_runs
from lrm_ext.evaluate.inspecting import load_runs
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.judging import (
    CACHE_FILE,
    JudgeConfig,
    ModelJudge,
    agreements,
    load_rubric,
    rubric_names,
)
from lrm_ext.evaluate.kind import Verdict
from lrm_ext.evaluate.mapping import SetMapping
from lrm_ext.evaluate.registry import write_folder
from lrm_ext.evaluate.report import EvalReport, add_judged
from lrm_ext.evaluate.results import open_result
from lrm_ext.report.settings import Setting, score_settings
from lrm_ext.translate.cache import CachedAnswer
from lrm_ext.translate.engines.base import BudgetError

EXTRA = {
    "score_rubric": {"criteria": "Is it polite?", "score1_description": "It is rude."},
    "caption": "A dog on a sofa.",
}


def make_items(num, lang="en", extra=EXTRA):
    return [
        Item(
            f"q{n}",
            f"{n}.png",
            f"What is {n}? {lang}",
            "odd" if n % 2 else "even",
            f"Reference {n}.",
            lang,
            "caption",
            extra=extra,
        )
        for n in range(num)
    ]


def write_run(folder, benchmark, lang, texts):
    """Stored answers, as `lrm eval` leaves them."""
    predictions = folder / "eval" / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    run = {"data": {}, "folders": {benchmark.name: str(benchmark)}}
    (predictions / "run.json").write_text(json.dumps(run))
    lines = [
        {
            "question_id": f"q{n}",
            "key": f"q{n}",
            "prompt": f"What is {n}? {lang}",
            "text": text,
            "gold": f"Reference {n}.",
            "benchmark": benchmark.name,
            "kind": "captions",
            "lang": lang,
            "category": "odd" if n % 2 else "even",
            "answer_type": "caption",
            "image": f"{n}.png",
            **({"finish_reason": "refused"} if text is None else {}),
        }
        for n, text in enumerate(texts)
    ]
    text = "".join(json.dumps({**one, "text": one["text"] or ""}) + "\n" for one in lines)
    (predictions / f"{benchmark.name}.{lang}.jsonl").write_text(text)
    return folder


@pytest.fixture
def make_run(tmp_path):
    """Write a benchmark that names a rubric, and answers: `make_run("a", ["x", ...], "xchat")`."""

    def make(name, texts, rubric="xchat", lang="en", extra=EXTRA):
        folder = tmp_path / "sets" / "chat"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(len(texts)):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        items = make_items(len(texts), lang, extra)
        write_folder(folder, "captions", lang, items, folder, folder / "x", notes={"judge": rubric})
        return write_run(tmp_path / name, folder, lang, texts)

    return make


class JudgeService(ChatService):
    """Says what a function of the prompt and of how often it was asked before says."""

    def __init__(self, say):
        super().__init__({})
        self.say = say
        self.times = Counter()

    def handle(self, body, headers):
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else content[-1]["text"]
        with self.lock:
            self.bodies.append(body)
            self.times[prompt] += 1
            number = self.times[prompt]
        time.sleep(self.wait_s)
        said = self.say(prompt, number)
        return chat_answer(said) if isinstance(said, str) else said


def judge_of(service, run, **settings):
    options = settings.pop("options", {})
    cache = run / "eval" / CACHE_FILE
    return ModelJudge(JudgeConfig("j", service.url, cache, options=options, **settings))


def judged(judge, run, lang="en"):
    path = run / "eval" / "predictions" / f"chat.{lang}.jsonl"
    return judge.judge_stored(path, "chat", lang)


def test_every_rubric_says_whose_it_is_and_mappings_may_name_it():
    rubrics = [load_rubric(name) for name in rubric_names()]
    assert all("arXiv" in one.follows and "Ours" in one.wording for one in rubrics)
    named = get_args(get_type_hints(SetMapping)["judge"])
    assert set(named) - {""} == set(rubric_names())
    with pytest.raises(ConfigError, match="no rubric 'me'; choose from alm-bench, "):
        load_rubric("me")


def test_a_prompt_has_what_the_rubric_needs():
    (item,) = make_items(1)
    (prompt,) = load_rubric("xchat").ask(item, "It is {{ no }} dog.", item.answer)
    parts = ("What is 0? en", "criteria: Is it polite?", "A dog on a sofa.", "Reference 0.")
    assert all(part in prompt for part in (*parts, "It is {{ no }} dog.", "in English"))
    bare = dataclasses.replace(item, extra={"score_rubric": "Polite?", "caption": None})
    assert "[What the image shows]" not in load_rubric("xchat").ask(bare, "x", "y")[0]
    with pytest.raises(DataError, match="question q0: rubric llava-bench needs .*'caption'"):
        load_rubric("llava-bench").ask(bare, "x", "y")
    closed = dataclasses.replace(item, extra={"question_type": "MCQ"})
    assert "nothing between" in load_rubric("alm-bench").ask(closed, "x", "y")[0]
    assert "nothing between" not in load_rubric("alm-bench").ask(item, "x", "y")[0]
    first, second = load_rubric("wildvision").ask(item, "mine", "theirs")
    assert first.index("mine") < first.index("theirs")
    assert second.index("theirs") < second.index("mine")


@pytest.mark.parametrize(
    ("rubric", "text", "error", "said"),
    [
        ("xchat", "4", None, "4"),
        ("xchat", " **4**\nBecause.", None, "4"),
        ("xchat", "4\nBecause it", "cut off", "4"),
        ("xchat", "4", "cut off", "undecided: cut off"),
        ("xchat", "4.5", None, "undecided: out of range"),
        ("xchat", "6", None, "undecided: out of range"),
        ("xchat", "-1", None, "undecided: out of range"),
        ("xchat", "Score: 4", None, "undecided: prose"),
        ("xchat", "4/5", None, "undecided: prose"),
        ("xchat", "4 5", None, "undecided: prose"),
        ("xchat", "I cannot say. 4", None, "undecided: prose"),
        ("xchat", "", None, "undecided: empty"),
        ("xchat", None, "refused: no", "undecided: refused"),
        ("xchat", None, "no answer: 500", "undecided: no reply"),
        ("llava-bench", "8 9.5\nGood.", None, "9.5/8"),
        ("llava-bench", "8, 9", None, "9/8"),
        ("llava-bench", "8", None, "undecided: prose"),
        ("llava-bench", "0 9", None, "undecided: out of range"),
        ("alm-bench", "0", None, "0"),
        ("ayavisionbench", "correct.", None, "CORRECT"),
        ("ayavisionbench", "INCORRECT", None, "undecided: prose"),
        ("ayavisionbench", "CORRECT or WRONG", None, "undecided: prose"),
        ("wildvision", "tie", None, "TIE"),
    ],
)
def test_a_reply_is_read_strictly(rubric, text, error, said):
    assert load_rubric(rubric).read(CachedAnswer(text, error)) == said


@pytest.mark.parametrize(
    ("rubric", "said", "parsed", "value", "correct"),
    [
        ("xchat", ["1"], "1", 0.0, False),
        ("xchat", ["4"], "4", 0.75, False),
        ("xchat", ["5"], "5", 1.0, True),
        ("xchat", [], "missing", 0.0, False),
        ("alm-bench", ["7"], "7", 0.7, False),
        ("llava-bench", ["9/8"], "9/8", 0.9, False),
        ("llava-bench", [], "0/10", 0.0, False),
        ("ayavisionbench", ["CORRECT"], "CORRECT", None, True),
        ("ayavisionbench", ["WRONG"], "WRONG", None, False),
        ("ayavisionbench", [], "missing", None, False),
        ("wildvision", ["A", "B"], "win", 1.0, True),
        ("wildvision", ["B", "A"], "loss", 0.0, False),
        ("wildvision", ["A", "A"], "flip", 0.5, False),
        ("wildvision", ["B", "B"], "flip", 0.5, False),
        ("wildvision", ["A", "TIE"], "tie", 0.5, False),
        ("wildvision", ["A"], "tie", 0.5, False),
        ("wildvision", ["A", "undecided: prose"], "undecided: prose", None, False),
    ],
)
def test_marks_are_on_the_owner_s_scale(rubric, said, parsed, value, correct):
    local = Verdict("missing", False, "missing", key="q", category="c", answer_type="caption",
                    gold="g", empty=False)  # fmt: skip
    verdict = load_rubric(rubric).mark(local, said)
    assert (verdict.parsed, verdict.value, verdict.correct) == (parsed, value, correct)


def replies(*contents):
    """What a judge says of an answer that names its number, `say 2`."""
    return lambda prompt, number: contents[int(re.search(r"say (\d)", prompt)[1])]


@pytest.mark.parametrize(
    ("rubric", "contents", "score"),
    [
        ("xchat", ("2", "5"), 100 * (0.25 + 1) / 2),
        ("alm-bench", ("0", "9"), 45),
        ("llava-bench", ("8 6", "4 6"), 100 * (6 + 6) / (8 + 4)),
        ("ayavisionbench", ("CORRECT", "WRONG"), 50),
    ],
)
def test_a_score_is_the_owner_s_figure(make_run, serve, rubric, contents, score):
    run = make_run("a", ["say 0", "say 1"], rubric)
    result = judged(judge_of(serve(JudgeService(replies(*contents))), run), run)
    report = result.score()
    assert report.headline == pytest.approx(score)
    assert (report.mode, report.headline_name) == (f"judge:{rubric}:j", f"score by j ({rubric})")
    found = report.interval()
    assert found["method"] == "bootstrap" and found["low"] <= score <= found["high"]


def cut(content):
    data = {"choices": [{"message": {"content": content}, "finish_reason": "length"}]}
    return Answer(body=json.dumps(data).encode())


REFUSED = chat_answer("", refusal="I will not.")
FILTERED = Answer(400, b'{"error": {"message": "content filter", "code": "content_filter"}}')


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("I think that it deserves a 4.", "prose"),
        ("11", "out of range"),
        (cut("Let me think about"), "cut off"),
        (REFUSED, "refused"),
        (FILTERED, "refused"),
        ("", "empty"),
    ],
    ids=["prose", "range", "cut", "refusal", "filter", "empty"],
)
def test_what_decides_nothing_is_asked_once_more_and_then_counted(make_run, serve, fault, reason):
    """The second answer is mended by asking again, the third one is not."""

    def say(prompt, number):
        if "say 0" in prompt:
            return "4"
        return "2" if "say 1" in prompt and "Keep strictly" in prompt else fault

    service = serve(JudgeService(say))
    run = make_run("a", ["say 0", "say 1", "say 2", None])
    judge = judge_of(service, run)
    result = judged(judge, run)
    assert [v.parsed for v in result.verdicts()] == ["4", "2", f"undecided: {reason}", "missing"]
    report = result.score()
    # the answer that its service refused has the lowest score, the undecided one has none
    assert report.headline == pytest.approx(100 * (0.75 + 0.25 + 0) / 3)
    assert report.details["judged"] == {
        "decided": 3, "of": 4, "undecided": {reason: 1}, "outcomes": {}
    }  # fmt: skip
    assert report.counts["unparsed"] == report.counts["refused"] == 1
    assert judge.counts["asked again"] == 2 and set(service.times.values()) == {1}
    again = judge_of(service, run)
    assert judged(again, run).verdicts() == result.verdicts()
    assert len(service.bodies) == 5 and again.counts["judge: from the cache"] == 5


@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, b"slow down"),
        Answer(500, b"oops"),
        Answer(hangs_up=True),
        Answer(200, b"<html>busy</html>"),
        Answer(200, b'{"hello": 1}'),
    ],
    ids=["429", "500", "closed", "html", "json"],
)
def test_what_may_pass_is_tried_again(make_run, serve, fault):
    service = serve(JudgeService(lambda prompt, number: fault if number < 3 else "5"))
    run = make_run("a", ["say 0", "say 1"])
    result = judged(judge_of(service, run), run)
    assert result.score().headline == 100 and set(service.times.values()) == {3}


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(make_run, serve):
    """A request costs 120 tokens, and may cost over a thousand."""
    service = serve(JudgeService(lambda prompt, number: "5"))
    run = make_run("a", [f"say {n}" for n in range(12)])
    path = run / "eval" / "predictions" / "chat.en.jsonl"
    for budget in ("2000", "2000"):
        with pytest.raises(BudgetError, match="budget of 2,000 tokens is spent.*larger budget"):
            judged(judge_of(service, run, options={"budget_tokens": budget}), run)
        assert not open_result(path, "chat", "en").judges()
        assert 0 < len(service.bodies) < 12
    result = judged(judge_of(service, run, options={"budget_tokens": "9000"}), run)
    assert result.score().headline == 100
    assert len(service.bodies) == 12 and set(service.times.values()) == {1}


def test_a_key_in_the_address_is_not_written_down(make_run, serve):
    service = serve(JudgeService(lambda prompt, number: "5"))
    run = make_run("a", ["say 0"])
    service.url = service.url.replace("//", "//user:hushhush@")
    judged(judge_of(service, run), run)
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(b"hushhush" in content for content in written)


def prefers(side):
    return lambda prompt, number: side


def prefers_mine(prompt, number):
    return "A" if prompt.index("say") < prompt.index("Reference") else "B"


@pytest.mark.parametrize(
    ("say", "score", "outcomes"),
    [
        (prefers("A"), 50, {"flip": 2}),
        (prefers("TIE"), 50, {"tie": 2}),
        (prefers_mine, 100, {"win": 2}),
    ],
    ids=["first", "neither", "mine"],
)
def test_pairs_are_asked_in_both_orders(make_run, serve, say, score, outcomes):
    service = serve(JudgeService(say))
    run = make_run("a", ["say 0", "say 1"], "wildvision")
    report = judged(judge_of(service, run), run).score()
    assert (report.headline, report.details["judged"]["outcomes"]) == (score, outcomes)
    assert len(service.bodies) == 4
    assert all(body["messages"][0]["content"][0]["type"] == "image_url" for body in service.bodies)


def test_the_answers_of_another_run_are_the_opponent_s(make_run, serve):
    service = serve(JudgeService(prefers("A")))
    make_run("b", ["better"], "wildvision")
    run = make_run("a", ["say 0", "say 1"], "wildvision")
    other = make_run("b", ["theirs", "say 1"], "wildvision")
    report = judged(judge_of(service, run, opponent=other), run).score()
    assert report.mode == "judge:wildvision:j against b"
    # the two answers to the second question are equal
    assert report.details["judged"]["outcomes"] == {"tie": 1, "flip": 1}
    assert len(service.bodies) == 3 and all("Reference" not in one for one in service.times)
    make_run("b", ["theirs"], "wildvision")
    make_run("a", ["say 0", "say 1"], "wildvision")
    with pytest.raises(DataError, match="no answers .* to 1 of 2 questions of chat in en, such as"):
        judged(judge_of(service, run, opponent=other), run)


def test_questions_without_an_expected_answer_are_compared(make_run, serve):
    service = serve(JudgeService(lambda p, n: "AB"[p.index("theirs") < p.index("mine")]))
    other, run = (make_run(name, [text] * 2, "wildvision") for name, text in
                  (("b", "theirs"), ("a", "mine")))  # fmt: skip
    files = [one / "eval" / "predictions" / "chat.en.jsonl" for one in (other, run)]
    for path in (run.parent / "sets" / "chat" / "en.jsonl", *files):
        path.write_text(re.sub(r"Reference \d\.", "", path.read_text()))
    with pytest.raises(DataError, match="no answers to compare with to 2 of 2 .* --against OTHER"):
        judged(judge_of(service, run), run)
    result = judged(judge_of(service, run, opponent=other), run)
    assert result.score().headline == 100
    add_judged(run / "eval", [result])
    assert open_result(files[1], "chat", "en").score().headline == 100
    with pytest.raises(DataError, match="cannot be scored here.*lrm benchmark judge"):
        open_result(files[0], "chat", "en").score()


def test_judges_and_samples_of_one_agree_so_far(make_run, serve):
    one = serve(JudgeService(replies("1", "2", "4", "5", "no")))
    run = make_run("a", [f"say {n}" for n in range(5)])
    result = judged(judge_of(one, run), run)
    add_judged(run / "eval", [result])
    other = serve(JudgeService(replies("1", "3", "3", "5", "2")))
    result = judged(judge_of(other, run, sample=2), run)
    assert {body["temperature"] for body in one.bodies} == {0}
    assert {(body["temperature"], body["seed"]) for body in other.bodies} == {(0.7, 2)}
    ((pair, found),) = agreements(result).items()
    assert pair == ("judge:xchat:j", "judge:xchat:j sample 2")
    assert (found.num, found.equal) == (4, 0.5)
    # sklearn's cohen_kappa_score(weights="quadratic") and scipy's spearmanr
    assert found.kappa == pytest.approx(0.888888888) and found.spearman == pytest.approx(0.9486833)


def run_lrm(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if isinstance(result.exception, (ConfigError, DataError)):
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def test_stored_verdicts_are_what_everything_else_reads(make_run, serve):
    service = serve(JudgeService(lambda prompt, number: "5" if "say 1" in prompt else "1"))
    a, b = make_run("a", ["say 0", "say 0"]), make_run("b", ["say 1", "say 0"])
    judge = ("--judge", "j", "--judge-url", service.url)
    said = run_lrm("benchmark", "judge", a, *judge)
    assert "score by j (xchat): 0.00" in said and "the judge decided on 2 of 2 answers" in said
    run_lrm("benchmark", "judge", b, *judge)
    num_asked = len(service.bodies)
    (compared,) = compare_runs(a, b, num_replicates=99)
    (english,) = compared.languages
    assert (english.a, english.b, english.only_b) == (0, 50, None)
    rows = load_runs([a, b]).rows
    assert [row.answers["b"].is_right for row in rows] == [True, False]
    settings = [Setting.parse(f"A={a}"), Setting.parse(f"B={b}")]
    (scored,) = score_settings(settings)
    assert scored.kind.headline == "score by j (xchat)"
    assert [scored.cells[label]["en"].value for label in "AB"] == [0, 50]
    run_lrm("benchmark", "judge", b, "--judge", "k", "--judge-url", service.url)
    assert "judge:xchat:k agree on 100.0 % of 2 answers" in run_lrm("benchmark", "judge", b)
    with pytest.raises(DataError, match="no verdicts of judge:xchat:k.*there are those of judge:x"):
        compare_runs(a, b, mode="judge:xchat:k")
    assert len(service.bodies) == num_asked + 2
    # other answers: the verdicts are on those no more
    make_run("a", ["say 1", "say 0"])
    assert open_result(a / "eval/predictions/chat.en.jsonl", "chat", "en").judges() == ()
    with pytest.raises(DataError, match="is read as .*, .* as judge:xchat:j; .*--mode"):
        compare_runs(a, b)
    with pytest.raises(DataError, match="are different scores"):
        score_settings(settings)


def test_a_model_is_asked_and_judged_in_one_command(make_run, serve, tmp_path):
    def say(prompt, number):
        return "3" if "[Rubric]" in prompt else f"say {prompt.split()[2]}"

    service = serve(JudgeService(say))
    make_run("unused", ["x"] * 3)
    make_run("unused", ["x"] * 3, lang="hr")
    command = (
        "eval", "--model", "m", "--base-url", service.url, "--benchmark-dir", tmp_path / "sets",
        "--out", tmp_path / "out", "--no-blind",
    )  # fmt: skip
    said = run_lrm(*command, "--judge", "j", "--judge-url", service.url)
    assert "judge:xchat:j decided on 6 of 6 answers" in said
    report = EvalReport.read(tmp_path / "out")
    (benchmark,) = report.benchmarks
    for result in benchmark.languages:
        assert [h.mode for h in result.headlines] == ["local", "judge:xchat:j"]
        assert result.headlines[-1].value == 50
    assert "judge:xchat:j" in (tmp_path / "out" / "report.html").read_text()
    num_asked = len(service.bodies)
    assert "judge:xchat:j" in run_lrm(*command)
    assert len(service.bodies) == num_asked == 12
    said = run_lrm(
        "benchmark", "judge", tmp_path / "out", "--judge", "k", "--judge-url", service.url
    )
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in said
    assert "judge:xchat:k" in (tmp_path / "out" / "report.html").read_text()
    (benchmark,) = EvalReport.read(tmp_path / "out").benchmarks
    assert [h.mode for h in benchmark.languages[0].headlines][1:] == [
        "judge:xchat:j", "judge:xchat:k"
    ]  # fmt: skip


def test_settings_that_cannot_be(make_run, tmp_path):
    run = make_run("a", ["say 0"], rubric="")
    judge = ("--judge", "j", "--judge-url", "http://127.0.0.1:1/v1")
    assert "needs --judge-url" in run_lrm("benchmark", "judge", run, "--judge", "j")
    assert "need --judge MODEL" in run_lrm("benchmark", "judge", run, "--judge-budget", "9")
    assert "expected an address" in run_lrm(
        "benchmark", "judge", run, "--judge", "j", "--judge-url", "localhost"
    )
    assert "no rubric 'me'" in run_lrm("benchmark", "judge", run, *judge, "--rubric", "me")
    assert "names a rubric" in run_lrm("benchmark", "judge", run, *judge)
    said = run_lrm(
        "eval", "--model", "m", "--base-url", "http://127.0.0.1:1/v1", *judge,
        "--benchmark-dir", tmp_path / "sets", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "no benchmark of chat names a rubric" in said


@pytest.mark.slow
def test_a_killed_judge_goes_on_and_asks_nothing_twice(make_run, serve):
    num = 30
    service = serve(JudgeService(lambda prompt, number: "5"))
    service.wait_s = 0.1
    run = make_run("a", [f"say {n}" for n in range(num)])
    command = [
        sys.executable, "-m", "lrm_ext.cli", "benchmark", "judge", str(run), "--judge", "j",
        "--judge-url", service.url, "--judge-option", "concurrency=2",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while len(service.bodies) < num // 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (run / "eval" / "scores.jsonl").exists() and len(service.bodies) < num
    subprocess.run(command, check=True)
    # what was under way when it was killed is asked again, and nothing else
    assert len(service.bodies) <= num + 2
    path = run / "eval" / "predictions" / "chat.en.jsonl"
    assert open_result(path, "chat", "en").score().headline == 100
