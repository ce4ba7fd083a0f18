"""Sets without images: their files, the last number of an answer, and who can be asked."""

import csv
import dataclasses
import json
import shutil
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_models import write_qwen2_vl
from safetensors.torch import load_file, save_file
from toy_benchmark import FakeAnswerer
from typer.testing import CliRunner

from llava.errors import CheckpointError, ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.evaluate.backends import ServiceAnswerer, choose_backend
from lrm_ext.evaluate.compare import compare_runs
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.items import Answer, Request, limit_items
from lrm_ext.evaluate.mapping import find_mapping
from lrm_ext.evaluate.reading import last_numbers
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import load_questions, run_evaluation
from lrm_ext.languages import get_language

STORY = {
    "story_id": "b929f263", "input_sentence_1": "Ana ima psa.",
    "input_sentence_2": "Pas je gladan.", "input_sentence_3": "Ana ide van.",
    "input_sentence_4": "Kupuje hranu.",
    "sentence_quiz1": "Pas leti.", "sentence_quiz2": "Pas jede.", "answer_right_ending": 2,
}  # fmt: skip
PASSAGE = {
    "link": "https://en.wikinews.org/wiki/x", "question_number": 1, "flores_passage": "Grad spava.",
    "question": "Tko spava?", "mc_answer1": "Pas", "mc_answer2": "Mačka", "mc_answer3": "Grad",
    "mc_answer4": "Nitko", "correct_answer_num": "3", "dialect": "hrv_Latn",
}  # fmt: skip


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def imported(tmp_path, name, lang):
    out = tmp_path / "out" / name
    import_benchmark(name, tmp_path / name, out, lang=lang)
    return get_benchmark(name, tmp_path / "out").read(lang)


def test_stories_passages_and_subjects_are_read_as_published(tmp_path):
    (tmp_path / "xstorycloze" / "ru").mkdir(parents=True)
    rows = [STORY, {**STORY, "story_id": "c", "answer_right_ending": 1}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "xstorycloze" / "ru" / "eval-00000-of-00001.parquet")
    story, other = imported(tmp_path, "xstorycloze", "ru")
    assert story.question == "Ana ima psa. Pas je gladan. Ana ide van. Kupuje hranu."
    assert (story.options, story.answer, other.answer) == (("Pas leti.", "Pas jede."), "B", "A")
    assert story.images == () and story.unit != other.unit

    write_lines(tmp_path / "belebele" / "data" / "hrv_Latn.jsonl", [PASSAGE, PASSAGE])
    passage, again = imported(tmp_path, "belebele", "hr")
    letter = get_language("hr").option_letter
    assert passage.text == (
        f"Grad spava.\nTko spava?\nA. Pas\nB. Mačka\nC. Grad\nD. Nitko\n{letter}"
    )
    assert passage.answer == "C" and passage.question_id != again.question_id

    path = tmp_path / "mmmlu" / "test" / "mmlu_DE-DE.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Question", "A", "B", "C", "D", "Answer", "Subject"])
        writer.writerow(["0", "Was ist\n2 + 2?", "1", "2", "3", "4", "D", "elementary_mathematics"])
    (question,) = imported(tmp_path, "mmmlu", "de")
    assert question.answer == "D" and question.category == "elementary_mathematics"


@pytest.mark.parametrize(
    ("text", "lang", "values"),
    [
        ("18 eggs, so 1.080 in all", "hr", {"1080", "1.08"}),
        ("The answer is 1,234.", "en", {"1234"}),
        ("To je 1 000 kuna", "hr", {"1000"}),
        ("উত্তর ১৮টি", "bn", {"18"}),
        ("१,२३,४५६", "hi", {"123456"}),
        ("\u0661\u066c\u0662\u0663\u0664\u066b\u0665", "ar", {"1234.5"}),
        ("答案是１８。", "zh", {"18"}),
        ("คำตอบคือ ๑๒", "th", {"12"}),
        ("pages 5-10", "en", {"10"}),
        ("it is -5", "en", {"-5"}),
        ("$18.00", "en", {"18"}),
        ("12", "xx", {"12"}),
        ("none at all", "en", set()),
    ],
)
def test_the_last_number_in_the_digits_of_any_script(text, lang, values):
    assert last_numbers(text, lang) == {*map(Decimal, values)}


@pytest.fixture
def problems(tmp_path):
    """Three word problems in two languages; answers are integers, as in the Parquet files."""
    for lang in ("en", "bn"):
        rows = [
            {"question": f"{lang} {n}?", "answer": None, "answer_number": n} for n in (18, 3, 1000)
        ]
        (tmp_path / "mgsm" / lang).mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / "mgsm" / lang / "test-00000-of-00001.parquet")
        imported(tmp_path, "mgsm", lang)
    return tmp_path / "out"


class Solver(FakeAnswerer):
    """Reasons in English, and in Bengali in its digits; one answer has no number."""

    answers = {
        "en 18?": "16 - 3 = 13, and 18 it is.", "en 3?": "It is 4.", "en 1000?": "So 1,000.",
        "bn 18?": "উত্তর হল ১৮।", "bn 3?": "জানি না", "bn 1000?": "১,০০০",
    }  # fmt: skip

    def answer(self, requests):
        assert all(request.images == () for request in requests)
        return [Answer(self.answers[request.text], 9, "stop") for request in requests]


def test_word_problems_are_scored_by_the_last_number(config, problems, tmp_path):
    config = dataclasses.replace(
        config, benchmark_dir=problems / "mgsm", benchmarks=("mgsm",), text_only=True
    )
    sets = run_evaluation(config, Solver)
    assert not list(config.predictions_dir.glob("*.blind.jsonl"))
    (mgsm,) = score_run(config, sets, "").benchmarks
    scores = {r.lang: (r.total.accuracy, r.total.blind_accuracy) for r in mgsm.languages}
    assert scores == {"bn": (2 / 3, None), "en": (2 / 3, None)}
    # the same by the command line, from the answers alone
    done = CliRunner().invoke(
        app, ["benchmark", "score", "mgsm", "--json", "--predictions",
              str(config.predictions_dir / "mgsm.bn.jsonl")],
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["headline"] == pytest.approx(200 / 3) and found["counts"]["unparsed"] == 1
    told = CliRunner().invoke(app, ["report", str(config.results_dir)])
    assert told.exit_code == 0 and "mgsm" in told.stdout


@pytest.fixture
def base_dir(model_dir, tmp_path):
    """The language model of the golden LLaVA alone, as transformers' own class saves it."""
    folder = tmp_path / "base"
    shutil.copytree(model_dir, folder)
    parts = ("mm_projector", "vision_tower")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(part in k for part in parts)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    described = {k: v for k, v in described.items() if not k.startswith(("mm_", "use_mm"))}
    described |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def stories(tmp_path):
    """Four stories of different lengths in two languages."""
    for lang in ("en", "ru"):
        rows = [
            {**STORY, "story_id": str(n), "input_sentence_1": f"{lang} {'a ' * n}"}
            for n in range(1, 5)
        ]
        write_lines(tmp_path / "xstorycloze" / f"{lang}.jsonl", rows)
        imported(tmp_path, "xstorycloze", lang)
    return tmp_path / "out"


def texts(config):
    paths = sorted(config.predictions_dir.glob("*.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    return {(line["benchmark"], line["lang"], line["key"]): line["text"] for line in lines}


@pytest.mark.parametrize("rank", [None, "mean"])
def test_a_model_and_its_base_are_asked_by_one_command_and_compared(
    config, stories, base_dir, rank, tmp_path
):
    tuned = dataclasses.replace(
        config, benchmark_dir=stories, benchmarks=(), conv_mode="vicuna_v1", text_only=True,
        rank=rank, out_dir=tmp_path / "tuned",
    )  # fmt: skip
    base = dataclasses.replace(tuned, model_path=base_dir, out_dir=tmp_path / "plain", batch_size=3)
    for one in (tuned, base):
        score_run(one, run_evaluation(one), "")
    # it has the same weights, so it must say the same, whatever the batch
    assert texts(base) == texts(tuned) and len(texts(base)) == 8
    assert len({*texts(base).values()}) > 1
    (found,) = compare_runs(base.results_dir, tuned.results_dir)
    differences = [one.difference for one in found.languages]
    assert [(d.value, d.low, d.high) for d in differences] == [(0, 0, 0)] * 2


def test_the_losses_of_a_base_model_are_those_of_its_own_forward(config, base_dir):
    config = dataclasses.replace(config, model_path=base_dir, text_only=True, conv_mode="vicuna_v1")
    answerer = choose_backend(config).load()
    requests = [Request("Tko?", "hr", ()), Request("Tko je tamo u kući?", "hr", ())]
    answers = ["Pas.", "Nitko nije."]
    every = zip(requests, answers, answerer.token_losses(requests, answers), strict=True)
    for request, answer, losses in every:
        ids = torch.tensor([answerer._tokens(request, answer)])
        labels = torch.full_like(ids, -100)
        labels[0, -len(losses) :] = ids[0, -len(losses) :]
        with torch.inference_mode():
            whole = answerer._model(ids, labels=labels).loss
        assert torch.allclose(losses.mean(), whole, atol=1e-4)


def test_questions_with_and_without_an_image_share_a_batch(config, benchmark_dir):
    answerer = choose_backend(dataclasses.replace(config, conv_mode="vicuna_v1")).load()
    requests = [
        Request("Tko je to?", "hr", ()),
        Request("Što je na slici?", "hr", (benchmark_dir / "0.png",)),
        Request("Kada?", "hr", ()),
    ]
    assert answerer.answer(requests) == [answerer.answer([one])[0] for one in requests]


def test_a_base_model_is_asked_by_its_own_chat_template(config, base_dir):
    config = dataclasses.replace(config, model_path=base_dir, text_only=True)
    with pytest.raises(ConfigError, match="--conv-mode, such as that of the model"):
        choose_backend(config)
    path = base_dir / "tokenizer_config.json"
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    backend = choose_backend(config)
    assert backend.identity()["template"] == "auto"
    assert "[user] Tko?" in backend.load()._tokenizer.decode(
        backend.load()._encode(Request("Tko?", "hr", ()))
    )
    with pytest.raises(CheckpointError, match="text-only model"):
        choose_backend(dataclasses.replace(config, text_only=False, conv_mode="vicuna_v1")).load()


def test_models_of_transformers_and_services_get_the_text_alone(config, tmp_path):
    folder = tmp_path / "qwen"
    folder.mkdir()
    config = dataclasses.replace(config, model_path=write_qwen2_vl(folder), text_only=True)
    answerer = choose_backend(config).load()
    requests = [Request("Vidi li se pas?", "hr", ()), Request("Is there?", "hr", ())]
    assert answerer.answer(requests) == [answerer.answer([one])[0] for one in requests]
    assert "vision" not in answerer._prompt(requests[0])
    body = ServiceAnswerer("http://127.0.0.1:1/v1", "m", 8)._body(requests[0])
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Vidi li se pas?"}]}
    ]


def test_sets_with_and_without_images_are_not_taken_for_each_other(config, problems):
    with pytest.raises(DataError, match="18 of 18|9 of 9.*leave out --text-only"):
        load_questions(dataclasses.replace(config, text_only=True))
    text_only = dataclasses.replace(config, benchmark_dir=problems, benchmarks=("mgsm",))
    with pytest.raises(DataError, match="3 of 3 questions.*--text-only"):
        load_questions(text_only)
    items = get_benchmark("mgsm", problems).read("en")
    assert len(limit_items(items, 2)) == 2
    assert find_mapping("mgsm").text_only and not find_mapping("mmmb").text_only
