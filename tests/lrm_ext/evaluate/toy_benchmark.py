"""A small benchmark in two languages on the golden pictures, and a model that is none."""

import json
import shutil
from pathlib import Path

from lrm_ext.evaluate.items import Answer

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"
QUESTIONS = {
    "en": ("Is there a {}?", "Yes", "What is number {}?", "cat", "Is it a {} at all, or not one?"),
    "hr": ("Vidi li se {}?", "Da", "Što je broj {}?", "mačka", "Je li to uopće {} ili nije?"),
}


def write_benchmark(folder: Path, num_images: int = 3) -> Path:
    """Three questions a picture: two by yes or no, one free; all texts of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_images):
        shutil.copyfile(MODELS / f"image{i}.png", folder / f"{i}.png")
    for lang, (exists, yes, what, name, other) in QUESTIONS.items():
        rows = []
        for i in range(num_images):
            thing = "x" * (3 * i + 1)
            rows += [
                ("existence", exists.format(thing), yes, "yesno", i),
                ("naming", what.format(i), name, "text", i),
                ("category", other.format(thing), "No" if lang == "en" else "Ne", "yesno", i),
            ]
        lines = [
            {
                "question_id": f"{task}-{i}",
                "image": f"{i}.png",
                "text": text,
                "category": task,
                "answer": answer,
                "lang": lang,
                "answer_type": answer_type,
            }
            for task, text, answer, answer_type, i in rows
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{lang}.jsonl").write_text(text, encoding="utf-8")
    return folder


class FakeAnswerer:
    """Answers right with a picture and yes without; remembers what it was asked."""

    def __init__(self):
        self.batches = []

    def num_tokens(self, request):
        return len(request.text)

    def answer(self, requests):
        self.batches.append(list(requests))
        return [Answer(self._text(r), 1, "stop") for r in requests]

    def _text(self, request):
        exists, yes, what, name, _ = QUESTIONS[request.lang]
        if None in request.images or request.text.startswith(exists.split("{")[0]):
            return yes
        return name if request.text.startswith(what.split("{")[0]) else "Ne."
