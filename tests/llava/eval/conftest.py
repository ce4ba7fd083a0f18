"""Tiny models, a few questions about three pictures, and a run of a script in this process."""

import json
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"
TEXTS = ("What?", "Is there a big red dog in it?", "Name it.", "Why is that so?", "Which colour?")


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture
def write_lines(tmp_path):
    """Write JSON Lines: `write_lines("q.jsonl", records)`."""

    def write(name, records):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_json(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_lines():
    def read(path):
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]

    return read


@pytest.fixture
def questions(write_lines):
    """Five questions, two of which share an id, as MME's do."""
    records = [
        {"question_id": min(i, 3), "image": f"image{i % 3}.png", "text": text, "category": "c"}
        for i, text in enumerate(TEXTS)
    ]
    return write_lines("questions.jsonl", records)


@pytest.fixture
def flags(questions, tmp_path):
    """The command line of a generator; keyword arguments replace or add flags."""

    def make(*switches, **changes):
        values = {
            "model-path": MODELS / "tiny-llava",
            "question-file": questions,
            "image-folder": MODELS,
            "answers-file": tmp_path / "answers" / "a.jsonl",
            "conv-mode": "vicuna_v1",
            "temperature": 0,
            "max_new_tokens": 6,
            "device": "cpu",
            **{name if name in ("max_new_tokens", "top_p") else name.replace("_", "-"): value
               for name, value in changes.items()},
        }  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
        return [*(word for pair in pairs for word in pair), *switches]

    return make


class FakeAnswerer:
    """Answers with the question in capitals, without a model."""

    def __init__(self):
        self.asked = []

    def answer(self, questions, batch_size):
        for question in questions:
            self.asked.append(question.text)
            yield question, question.text.upper()


@pytest.fixture
def fake_answerer(monkeypatch):
    from llava.eval import model_vqa

    answerer = FakeAnswerer()
    monkeypatch.setattr(model_vqa, "load_answerer", lambda *args: answerer)
    return answerer
