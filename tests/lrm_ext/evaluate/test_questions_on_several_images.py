"""Questions about several images: read by a mapping, asked in their order, shown in reports."""

import base64
import dataclasses
import json

import pytest
import torch
from hub_models import write_instructblip, write_qwen2_vl
from PIL import Image
from toy_benchmark import FakeAnswerer

from llava.errors import ConfigError, DataError
from llava.images import open_image
from llava.mm_utils import process_images, tokenizer_image_token
from llava.serve.openai_chat import Message
from lrm_ext.evaluate.answerer import load_answerer
from lrm_ext.evaluate.backends import ServiceAnswerer, choose_backend
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.inspecting import load_runs
from lrm_ext.evaluate.items import Request, content_parts, read_items
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import load_questions, run_evaluation
from lrm_ext.languages.templates import Templates

COLOURS = ["red", "green", "blue", "black", "white", "gray", "pink", "brown", "navy", "gold"]
MAPPING = """
title = "Mine"
kind = "answers"
answer_type = "text"
languages = {{ hr = "hr" }}
[files]
questions = ["{{lang}}.jsonl"]
images = ["pics"]
[columns]
id = "id"
image = {image}
question = "pitanje"
hint = "uvod"
answer = "odgovor"
"""


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "data" / "pics"
    folder.mkdir(parents=True)
    for number, colour in enumerate(COLOURS, start=1):
        Image.new("RGB", (20 + number, 30), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def imported(tmp_path, pictures):
    """Imports one row; returns its question."""

    def read(image, **row):
        mapping = tmp_path / f"mine{len(list(tmp_path.glob('mine*.toml')))}.toml"
        mapping.write_text(MAPPING.format(image=json.dumps(image)), encoding="utf-8")
        row = {"id": "q1", "odgovor": "pas", "pitanje": "Što je?", **row}
        (tmp_path / "data" / "hr.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        out = tmp_path / "out" / mapping.stem
        import_benchmark(str(mapping), tmp_path / "data", out, lang="hr")
        (item,) = read_items(out / "hr.jsonl", "hr")
        return item

    return read


def columns(number):
    return {f"image_{n}": f"{n}.png" for n in range(1, number + 1)}


def test_images_without_places_come_before_the_question(imported):
    for image, cells in (
        ("image_*", columns(10)),
        ([f"image_{n}" for n in range(1, 11)], columns(10)),
        ("slike", {"slike": list(columns(10).values())}),
        ("slike", {"slike": str(list(columns(10).values()))}),
    ):
        item = imported(image, **cells)
        assert item.image == tuple(f"{n}.png" for n in range(1, 11)), "10 comes after 9"
        assert "<image>" not in item.text and item.text.startswith("Što je?\n")
    assert imported("image_*", **columns(1)).image == "1.png"


def test_empty_columns_keep_their_number(imported):
    cells = {**columns(4), "image_2": None, "image_3": ""}
    assert imported("image_*", **cells).image == ("1.png", "4.png")
    asked = imported("image_*", **cells, pitanje="Je li <image 4> kao <image 1>?")
    assert asked.image == ("4.png", "1.png")
    with pytest.raises(DataError, match=r"mine\d: .*hr\.jsonl:1: question q1: .* <image 2>.* 1, 4"):
        imported("image_*", **cells, pitanje="Je li <image 2> kao <image 1>?")


def test_images_stand_where_the_text_names_them(imported):
    item = imported(
        "image_*", **columns(4), uvod="Gledaj <image 3>.", pitanje="<image 1> ili <image 3>?"
    )
    # two are named nowhere, and one is named twice
    assert item.image == ("2.png", "4.png", "3.png", "1.png", "3.png")
    assert item.text.startswith("<image>\n<image>\nGledaj <image>.\n<image> ili <image>?\n")
    assert item.hint == "<image>\n<image>\nGledaj <image>."
    assert item.question == "<image> ili <image>?"
    item = imported("image_*", **columns(2), pitanje="<image> ili <image>?")
    assert item.image == ("1.png", "2.png") and item.text.startswith("<image> ili <image>?\n")


def test_what_is_missing_is_named_with_benchmark_and_question(imported, pictures):
    with pytest.raises(DataError, match=r"mine0: .*question q1: 3 <image> in the text, but 2 in"):
        imported("image_*", **columns(2), pitanje="<image> ili <image> ili <image>?")
    (pictures / "2.png").unlink()
    with pytest.raises(
        DataError, match=r"1 images of mine1 are missing.*2\.png \(.*hr\.jsonl:1: question q1\)"
    ):
        imported("image_*", **columns(3))
    with pytest.raises(DataError, match="question q1: no image; expected one in image_"):
        imported("image_*", image_1=None)


def test_images_inside_a_table_become_files(imported, pictures, tmp_path):
    cells = [base64.b64encode((pictures / f"{n}.png").read_bytes()).decode() for n in (1, 2)]
    pictures.rename(tmp_path / "elsewhere")
    item = imported("slike", slike=cells)
    widths = [open_image(tmp_path / "out" / "mine0" / "images" / i).width for i in item.images]
    assert widths == [21, 22]


@pytest.fixture
def toy(benchmark_dir):
    """A benchmark with questions on one, two and ten images."""
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + number, 30), colour).save(benchmark_dir / f"c{number}.png")
    ten = [f"c{n}.png" for n in range(10)]
    asked = [
        ("one", "0.png", "Što je?"),
        ("two", ["0.png", "1.png"], "Jesu li iste?"),
        ("swapped", ["1.png", "0.png"], "Jesu li iste?"),
        ("inside", ["0.png", "1.png"], "Je li <image> kao <image>?"),
        ("ten", ten, "Koja?"),
    ]
    lines = [
        {"question_id": key, "image": image, "text": text, "category": "c", "answer": "da",
         "lang": "hr", "answer_type": "yesno" if key == "two" else "text"}
        for key, image, text in asked
    ]  # fmt: skip
    (benchmark_dir / "en.jsonl").unlink()
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (benchmark_dir / "hr.jsonl").write_text(text, encoding="utf-8")
    return benchmark_dir


def requests(folder):
    items = read_items(folder / "hr.jsonl", "hr")
    return [Request(i.text, "hr", tuple(folder / image for image in i.images)) for i in items]


@pytest.fixture
def answerer(model_dir):
    templates = Templates.of_checkpoint(model_dir, "lrm_bare")
    return load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")


def test_a_batch_answers_as_each_question_alone(answerer, toy):
    shapes = []
    tower = answerer._model.get_vision_tower()
    tower.register_forward_hook(lambda *call: shapes.append(len(call[1][0])))
    asked = requests(toy)
    answers = answerer.answer(asked)
    # twelve different images; that of the first question is prepared apart, as the only one
    assert shapes == [1, 12]
    assert answers == [answerer.answer([request])[0] for request in asked]
    assert answers[1] != answers[2] != answers[3], "the order and the places matter"
    sizes = [answerer.num_tokens(request) for request in asked]
    assert sizes[4] - sizes[0] > 9 * 16
    blind = [dataclasses.replace(r, images=(None,) * len(r.images)) for r in asked]
    assert [answerer.num_tokens(request) for request in blind] == sizes
    assert answerer.answer(blind)[1:3] == [answerer.answer(blind[1:2])[0]] * 2


@pytest.mark.parametrize("number", [1, 3])
def test_answers_are_those_of_the_model_itself(answerer, toy, number):
    request = requests(toy)[number]
    text = request.text if "<image>" in request.text else f"<image>\n<image>\n{request.text}"
    conversation = answerer._templates.in_language("hr")
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None)
    tokenizer, model = answerer._tokenizer, answerer._model
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")
    assert int((ids == -200).sum()) == 2
    images = [open_image(path) for path in request.images]
    pixels = process_images(images, answerer._image_processor, model.config)
    sizes = [image.size for image in images]
    found = model.generate(
        ids[None], images=pixels, image_sizes=sizes, do_sample=False, max_new_tokens=8
    )
    said = tokenizer.decode(found[0], skip_special_tokens=True).strip()
    assert answerer.answer([request])[0].text == said


def test_several_images_are_not_cut_into_tiles(model_dir, toy, monkeypatch):
    """As in LLaVA-NeXT; a single one is, and is counted with its tiles."""
    config = json.loads((model_dir / "config.json").read_text())
    config |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56], [56, 28]]}
    (model_dir / "config.json").write_text(json.dumps(config))
    templates = Templates.of_checkpoint(model_dir, "lrm_bare")
    answerer = load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")
    one, two, *_ = requests(toy)
    (features, _), (tiles, _) = answerer._image_features([two]), answerer._image_features([one])
    assert [f.shape for f in features] == [(1, 16, 32)] * 2
    assert [f.shape for f in tiles] == [(3, 16, 32)]
    num_text = answerer.num_tokens(one) - 3 * 16
    assert num_text == len(answerer._encode(one)) - 1
    assert answerer.num_tokens(two) == len(answerer._encode(two)) - 2 + 2 * 16
    assert answerer.answer([one, two]) == [answerer.answer([r])[0] for r in (one, two)]
    with pytest.raises(DataError, match=r"\d+ tokens with 256 for 16 images leaves no 8"):
        answerer.answer([dataclasses.replace(two, images=two.images * 8)])


def test_a_run_over_questions_with_several_images(config, toy, console):
    torch.manual_seed(0)
    config = dataclasses.replace(config, conv_mode="lrm_bare", batch_size=2)
    run_evaluation(config)
    one = dataclasses.replace(config, batch_size=1, out_dir=config.model_path / "other")
    run_evaluation(one)
    for path in config.predictions_dir.glob("*.jsonl"):
        assert path.read_bytes() == (one.predictions_dir / path.name).read_bytes()
    lines = (config.predictions_dir / "toy.hr.jsonl").read_text().splitlines()
    images = {record["key"]: record["image"] for record in map(json.loads, lines)}
    assert images["one"] == "0.png" and images["swapped"] == ["1.png", "0.png"]
    report = score_run(config, load_questions(config), "test")
    (first, _) = report.benchmarks[0].examples
    assert "0.png + " in first.image and first.image.endswith("1.png")
    height = max(open_image(toy / f"{n}.png").height for n in (0, 1))
    assert open_image(config.results_dir / first.file).height == height
    runs = load_runs([config.results_dir], benchmark_dir=toy)
    shown = {runs.rows[n].item.question_id: runs.images(n) for n in range(len(runs.rows))}
    assert [path.name for path in shown["swapped"]] == ["1.png", "0.png"]


def test_a_missing_image_is_named_with_its_question(config, toy):
    (toy / "c7.png").unlink()
    with pytest.raises(DataError, match=r"c7\.png \(toy hr, question ten\)"):
        run_evaluation(config, make_answerer=FakeAnswerer)
    skipping = dataclasses.replace(config, skip_missing_images=True)
    (questions,) = run_evaluation(skipping, make_answerer=FakeAnswerer)
    assert questions.unasked == {"ten"}


def test_a_service_gets_images_and_texts_in_their_order(toy):
    one, two, _, inside, ten = requests(toy)
    answerer = ServiceAnswerer("http://127.0.0.1:9/v1", "m", 9)

    def parts(request):
        (message,) = answerer._body(request)["messages"]
        return [
            p["text"] if p["type"] == "text" else p["image_url"]["url"] for p in message["content"]
        ]

    def url(path):
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    assert parts(one) == [url(toy / "0.png"), "Što je?"]
    assert parts(two) == [url(toy / "0.png"), url(toy / "1.png"), "Jesu li iste?"]
    first, second = url(toy / "0.png"), url(toy / "1.png")
    assert parts(inside) == ["Je li ", first, " kao ", second, "?"]
    assert parts(ten) == [*(url(toy / f"c{n}.png") for n in range(10)), "Koja?"]
    # our own service reads the same prompt as the model that is loaded here
    for request in (two, inside, ten):
        message = Message(role="user", content=answerer._body(request)["messages"][0]["content"])
        expected = "<image>".join(request.parts)
        assert message.placed_text() == expected.replace("<image>?", "<image>\n?")


def test_transformers_models_get_all_images(config, tmp_path, toy):
    (tmp_path / "qwen").mkdir()
    model = write_qwen2_vl(tmp_path / "qwen")
    answerer = choose_backend(dataclasses.replace(config, model_path=model)).load()
    asked = requests(toy)[:4]
    answers = answerer.answer(asked)
    assert answers == [answerer.answer([request])[0] for request in asked]
    images = [Image.new("RGB", size) for size in ((56, 56), (112, 56), (56, 112))]
    prompts = [answerer._prompt(request) for request in asked[:2]]
    inputs = answerer._processor(
        images=[images[:1], images[1:]], text=prompts, padding=True, return_tensors="pt"
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 8], [1, 8, 4]]
    assert inputs["mm_token_type_ids"].sum(1).tolist() == [4, 16]
    assert content_parts(asked[3], ["a", "b"]) == [
        {"type": "text", "text": "Je li "}, "a", {"type": "text", "text": " kao "}, "b",
        {"type": "text", "text": "?"},
    ]  # fmt: skip
    (tmp_path / "blip").mkdir()
    blip = write_instructblip(tmp_path / "blip")
    answerer = choose_backend(dataclasses.replace(config, model_path=blip)).load()
    with pytest.raises(ConfigError, match="takes one image before a question; found 2"):
        answerer.answer(asked[1:2])
