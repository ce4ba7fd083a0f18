"""Models of other kinds answer through the same runner: transformers' own, and services."""

import base64
import dataclasses
import io
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_models import write_instructblip, write_qwen2_vl
from PIL import ExifTags, Image

from llava.chat_service import ServiceLimits
from llava.errors import CheckpointError, ConfigError, ServiceError
from llava.images import open_image
from lrm_ext.evaluate.answerer import TransformersAnswerer
from lrm_ext.evaluate.backends import ServiceAnswerer, choose_backend, image_url, local_folder
from lrm_ext.evaluate.items import Answer, Request
from lrm_ext.evaluate.report import EvalReport, score_run
from lrm_ext.evaluate.results import read_answered, stated_kind
from lrm_ext.evaluate.runner import run_evaluation
from lrm_ext.evaluate.scoring import score_benchmark
from lrm_ext.export.transformers_checkpoint import export_hf
from lrm_ext.report.evaluation import remarks


def texts(config):
    records = [
        json.loads(line)
        for path in sorted(config.predictions_dir.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {(r["benchmark"], r["lang"], r["key"], r["blind"]): r["text"] for r in records}


@pytest.mark.parametrize("write", [write_instructblip, write_qwen2_vl])
def test_the_batch_size_does_not_change_an_answer(write, config, tmp_path, benchmark_dir):
    folder = tmp_path / "other"
    folder.mkdir()
    answerer = choose_backend(dataclasses.replace(config, model_path=write(folder))).load()
    assert isinstance(answerer, TransformersAnswerer)
    requests = [
        Request(text, "hr", (image,))
        for text in ("Vidi li se pas na slici ili se ne vidi?", "Is there?")
        for image in (benchmark_dir / "0.png", benchmark_dir / "1.png", None)
    ]
    answers = answerer.answer(requests)
    assert answers == [answerer.answer([request])[0] for request in requests]
    assert len({answer.text for answer in answers}) > 1
    assert all(0 < answer.num_new_tokens <= 8 for answer in answers)


def test_an_exported_checkpoint_answers_as_the_original(config, tmp_path):
    config = dataclasses.replace(config, conv_mode="vicuna_v1")
    run_evaluation(config)
    export_hf(config.model_path, tmp_path / "exported", conv_mode="vicuna_v1")
    exported = dataclasses.replace(config, model_path=tmp_path / "exported", conv_mode=None)
    run_evaluation(exported)
    assert texts(exported) == texts(config)


def test_a_folder_says_itself_what_it_is(config, tmp_path):
    assert choose_backend(config).identity()["conversation"]["system"]
    folder = tmp_path / "blip"
    folder.mkdir()
    write_instructblip(folder)
    other = dataclasses.replace(config, model_path=folder, conv_mode="vicuna_v1")
    with pytest.raises(CheckpointError, match="leave out --conv-mode"):
        choose_backend(other)


def test_a_name_that_is_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a folder; expected .* such as runs/mini"):
        local_folder(tmp_path / "nothing" / "here")


def test_a_folder_is_not_looked_for_on_the_hub_beside_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="runs/nothing is not a folder"):
        local_folder(Path("runs/nothing"))


class ChatServer:
    """Answers with what it was asked, or what it is told to send."""

    def __init__(self):
        self.bodies = []
        self.replies = []
        self.lock = threading.Lock()

    def handle(self, body, headers):
        with self.lock:
            self.bodies.append((body, headers))
            status, data = self.replies.pop(0) if self.replies else (200, self.good(body))
        return status, json.dumps(data).encode()

    def good(self, body):
        (message,) = body["messages"]
        text = f" {message['content'][1]['text']} "
        return {
            "choices": [{"message": {"content": text}, "finish_reason": "length"}],
            "usage": {"completion_tokens": 7},
        }


@pytest.fixture
def chat(quick_retries):
    server = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = server.handle(
                body, {name.lower(): value for name, value in self.headers.items()}
            )
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=partial(http.serve_forever, 0.02), daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield server
    http.shutdown()


def test_a_service_is_asked_with_image_and_question(chat, benchmark_dir, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answerer = ServiceAnswerer(chat.url, "mini", 9)
    image = benchmark_dir / "0.png"
    answers = answerer.answer([Request("Što?", "hr", (image,)), Request("Blind?", "en", (None,))])
    assert [dataclasses.astuple(a) for a in answers] == [
        ("Što?", 7, "length"),
        ("Blind?", 7, "length"),
    ]
    by_text = {b["messages"][0]["content"][1]["text"]: (b, h) for b, h in chat.bodies}
    body, headers = by_text["Što?"]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("mini", 9, 0)
    assert headers["authorization"] == "Bearer secret"
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(content) == image.read_bytes()
    blind = by_text["Blind?"][0]["messages"][0]["content"][0]["image_url"]["url"]
    assert blind != url


def _decode(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("kind", ["turned", "16 bits", "transparent", "cmyk"])
def test_a_service_sees_what_our_models_see(kind, tmp_path):
    """Each service has its own way with these files."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "image"
    if kind == "turned":
        Image.new("RGB", (40, 20)).save(path, "JPEG", exif=exif)
    elif kind == "16 bits":
        Image.new("I;16", (40, 20), 20_000).save(path, "PNG")
    elif kind == "transparent":
        Image.new("RGBA", (40, 20), (200, 0, 0, 9)).save(path, "PNG")
    else:
        Image.new("CMYK", (40, 20), (9, 9, 9, 9)).save(path, "JPEG")
    with _decode(image_url(path)) as sent:
        assert (sent.format, sent.mode) == ("PNG", "RGB")
        assert sent.tobytes() == open_image(path).tobytes()


def test_what_may_pass_is_tried_again(chat, benchmark_dir):
    chat.replies = [(429, {"error": "slow down"}), (503, {"error": "busy"})]
    answerer = ServiceAnswerer(chat.url, "mini", 9)
    (answer,) = answerer.answer([Request("Da?", "hr", (benchmark_dir / "0.png",))])
    assert answer.text == "Da?" and len(chat.bodies) == 3


def test_a_service_that_is_down_says_so(benchmark_dir, quick_retries):
    answerer = ServiceAnswerer("http://127.0.0.1:1/v1", "mini", 9, ServiceLimits(max_tries=2))
    with pytest.raises(ServiceError, match="does not answer"):
        answerer.answer([Request("Da?", "hr", (benchmark_dir / "0.png",))])


FILTERED = (400, {"error": {"message": "content filter", "code": "content_filter"}})
REFUSALS = {
    "400": FILTERED,
    "413": (413, {}),
    "422": (422, {"detail": "the image cannot be read"}),
    "filter": (
        200,
        {"choices": [{"message": {"content": "N"}, "finish_reason": "content_filter"}]},
    ),
    "refusal": (200, {"choices": [{"message": {"content": None, "refusal": "I cannot."}}]}),
    "moderation": (403, {"error": "your input was flagged"}),
}


def run_with(chat, config, tmp_path, **settings):
    return dataclasses.replace(
        config,
        model_path=config.model_path.relative_to(config.model_path.parent),
        base_url=chat.url,
        device=None,
        out_dir=tmp_path / "out",
        **settings,
    )


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_question_that_is_refused_is_wrong_and_counted(chat, config, tmp_path, refusal):
    """The others go on, in the same batch and after it; and nobody asks it again."""
    chat.good = lambda body: {"choices": [{"message": {"content": "Da"}}]}
    chat.replies = [REFUSALS[refusal]]
    service = run_with(chat, config, tmp_path, languages=("hr",), blind=False)
    sets = run_evaluation(service)
    (result,) = score_run(service, sets, "lrm eval").benchmarks[0].languages
    total = result.total
    assert (total.num_refused, total.num_missing, total.num_empty) == (1, 0, 0)
    assert total.num_questions == len(texts(service)) == 9
    assert "answers that the service refused to give (wrong): hr 1" in remarks_of(service)
    asked = len(chat.bodies)
    run_evaluation(service)
    assert len(chat.bodies) == asked
    (path,) = service.predictions_dir.glob("*.jsonl")
    scored = read_answered(path, stated_kind(path))
    report = score_benchmark(stated_kind(path), scored.items, scored.texts, lang="hr")
    assert report.counts["refused"] == 1 and report.counts["answered"] == 8


def remarks_of(config):
    return "\n".join(remarks(EvalReport.read(config.results_dir).benchmarks[0]))


@pytest.mark.parametrize("fault", [(401, {}), (402, {}), (404, {}), (429, "insufficient_quota")])
def test_what_was_answered_of_a_broken_batch_is_kept(chat, config, tmp_path, fault):
    """Three of a batch are answered after the fourth has failed for good."""
    service = run_with(chat, config, tmp_path, languages=("hr",), blind=False)
    chat.replies = [fault]
    with pytest.raises(ServiceError, match="What was answered is kept"):
        run_evaluation(service)
    assert len(texts(service)) == 3
    run_evaluation(service)
    assert len(texts(service)) == 9 and len(chat.bodies) == 10


@pytest.mark.parametrize(
    ("refusal", "num_asked"),
    [
        ({"error": {"message": "unknown field", "param": "top_k"}}, 4),
        ({"error": "this model does not take images"}, 20),
    ],
)
def test_a_service_that_refuses_everything_ends_the_run(chat, config, tmp_path, refusal, num_asked):
    service = run_with(chat, config, tmp_path)
    chat.replies = [(400, refusal)] * 99
    with pytest.raises(ServiceError, match="requests? (is|are) not accepted.*--fresh"):
        run_evaluation(service)
    assert len(texts(service)) < num_asked and len(chat.bodies) <= num_asked + 4


class NewerServer:
    """Refuses two fields as newer services do, one at a time."""

    MAX_TOKENS = {
        "message": "'max_tokens' is not supported. Use 'max_completion_tokens'.",
        "param": "max_tokens",
    }
    TEMPERATURE = {"message": "Unsupported value: 'temperature' does not support 0."}

    def __init__(self, chat):
        self._good = chat.good
        self.refused = []

    def handle(self, body, headers):
        for field, error in (("max_tokens", self.MAX_TOKENS), ("temperature", self.TEMPERATURE)):
            if field in body:
                self.refused.append(field)
                return 400, json.dumps({"error": error}).encode()
        assert body["max_completion_tokens"] == 8
        return 200, json.dumps(self._good(body)).encode()


def test_what_a_newer_service_takes_is_found_out_once(chat, config, tmp_path, caplog):
    newer = NewerServer(chat)
    chat.handle = newer.handle
    run_evaluation(run_with(chat, config, tmp_path))
    assert newer.refused == ["max_tokens", "temperature"]
    assert "max_completion_tokens and without temperature from now on" in caplog.text


def test_what_a_service_takes_can_be_said(chat, config, tmp_path):
    newer = NewerServer(chat)
    chat.handle = newer.handle
    said = {"max_tokens_field": "max_completion_tokens", "temperature": False}
    service = run_with(chat, config, tmp_path, **said)
    run_evaluation(service)
    assert newer.refused == []
    run = json.loads((service.predictions_dir / "run.json").read_text())
    assert run["temperature"] == "the service's own"
    with pytest.raises(ConfigError, match="expected max_tokens or max_completion_tokens"):
        choose_backend(dataclasses.replace(service, max_tokens_field="tokens"))
    with pytest.raises(ConfigError, match="name one with --base-url"):
        dataclasses.replace(service, base_url=None).validate()


def test_a_limit_that_is_too_large_is_not_the_question_s_fault(chat, config, tmp_path):
    """It names a field, but another name for it helps nobody."""
    error = {
        "message": "max_tokens is too large: 8. At most 4 are supported.",
        "param": "max_tokens",
    }
    newer = {"message": "max_completion_tokens is too large: 8", "param": "max_completion_tokens"}
    chat.handle = lambda body, headers: (
        400,
        json.dumps({"error": error if "max_tokens" in body else newer}).encode(),
    )
    with pytest.raises(ServiceError, match="first request is not accepted.*is too large: 8"):
        run_evaluation(run_with(chat, config, tmp_path))


def test_something_else_than_a_chat_completion(chat, benchmark_dir):
    chat.replies = [(200, {"hello": 1})] * 6
    with pytest.raises(ServiceError, match="expected a chat completion, found"):
        answerer = ServiceAnswerer(chat.url, "mini", 9)
        answerer.answer([Request("Da?", "hr", (benchmark_dir / "0.png",))])


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("<think>\nNo cat? No.\n</think>\n\nYes", "Yes"),
        ("No cat? No.\n</think>\n\nYes", "Yes"),
        ("<think>\nNo cat", ""),
        ([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}], "Yes"),
        (
            [{"type": "thinking", "thinking": [{"text": "No"}]}, {"type": "text", "text": "Yes"}],
            "Yes",
        ),
        (None, ""),
    ],
)
def test_what_a_model_thinks_is_no_answer(chat, content, answer):
    message = {"message": {"content": content, "reasoning_content": "No."}}
    chat.replies = [(200, {"choices": [message]})]
    (found,) = ServiceAnswerer(chat.url, "mini", 9).answer([Request("?", "en", (None,))])
    assert found.text == answer


def test_a_model_that_is_loaded_here_may_think_too(config):
    class Thinker:
        def num_tokens(self, request):
            return len(request.text)

        def answer(self, requests):
            return [Answer("A dog. No.</think> Yes", 4, "stop") for _ in requests]

    run_evaluation(config, make_answerer=Thinker)
    assert set(texts(config).values()) == {"Yes"}


def test_a_run_with_a_service(chat, config, tmp_path):
    service = run_with(chat, config, tmp_path)
    run_evaluation(service)
    assert len(texts(service)) == 36
    before = len(chat.bodies)
    run_evaluation(service)
    assert len(chat.bodies) == before
    with pytest.raises(ConfigError, match="leave out --device"):
        choose_backend(dataclasses.replace(service, device="cpu"))
    with pytest.raises(ConfigError, match="expected an address"):
        choose_backend(dataclasses.replace(service, base_url="localhost"))
