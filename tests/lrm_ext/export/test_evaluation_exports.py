"""Answers and benchmarks in other tools' formats say the same as ours."""

import csv
import dataclasses
import importlib.util
import json
from dataclasses import replace

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.evaluate.items import Answer, Item
from lrm_ext.evaluate.predictions import open_run
from lrm_ext.evaluate.registry import open_named, write_folder
from lrm_ext.evaluate.runner import _record
from lrm_ext.evaluate.scoring import score_file
from lrm_ext.export.evaluation import (
    export_lmms_eval,
    export_vlmevalkit,
    read_run,
    rows_of,
)

TEXTS = ["B", "Odpověď je A.", "=1+1", ""]


def questions(lang="cs"):
    """Two questions of MMBench in two rotations each."""
    items = []
    for number in range(2):
        for turn, options in enumerate((("jablko", "hruška"), ("hruška", "jablko"))):
            index = str(number + 1_000_000 * turn)
            items.append(
                Item(
                    index, f"{number}.png", "Co je na stole?", "object_localization", "BA"[turn],
                    lang, "letter", options=options, question="Co je na stole?", group=str(number),
                    source_id=index,
                )
            )  # fmt: skip
    return tuple(items)


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.new("RGB", (6, 4), (200, 10, 10)).save(pictures / f"{number}.png")
    write_folder(
        tmp_path / "bench" / "mm", "mmbench", "cs", questions(), pictures, tmp_path / "x.tsv"
    )
    return tmp_path / "bench" / "mm"


def answer(folder, lang, items, texts, out):
    """A run as `lrm eval` writes it, the last question first."""
    benchmark = open_named(str(folder))
    lines = [
        json.dumps(_record(item, Answer(text, 1, "stop"), benchmark, "a/model", False)) + "\n"
        for item, text in zip(items, texts, strict=True)
    ]
    path = out / "predictions" / f"{folder.name}.{lang}.jsonl"
    open_run(path.parent, {}, {}, {folder.name: str(folder)})
    path.write_text("".join(reversed(lines)), encoding="utf-8")
    return out


@pytest.fixture
def run(tmp_path, folder):
    return answer(folder, "cs", questions(), TEXTS, tmp_path / "run")


@pytest.fixture
def answered(tmp_path):
    """Write a benchmark in English, answer it, read the answers: `answered(kind, items, texts)`."""

    def make(kind, items, texts):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        folder = tmp_path / kind
        write_folder(folder, kind, "en", tuple(items), tmp_path / "pictures", tmp_path / "x.tsv")
        return next(read_run(answer(folder, "en", items, texts, tmp_path / f"run-{kind}")))

    return make


def question(kind, number, gold, category, text="What?", image_id="1"):
    letter = kind == "seed_bench"
    return Item(
        f"{category}/{number}", "1.png", text, category, gold, "en",
        "letter" if letter else "yesno", options=("a", "b") if letter else (),
        image_id=image_id, source_id=number,
    )  # fmt: skip


def invoke(*args):
    result = CliRunner().invoke(app, ["export", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_lmms_eval_samples_and_replay(run, tmp_path):
    out = tmp_path / "logs"
    invoke("predictions", run, "--to", "lmms-eval", "--out", out)
    (samples,) = out.glob("a_model/*_samples_mm_lrm_cs.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["filtered_resps"] for row in rows] == TEXTS  # texts, as lmms-eval 0.7 writes them
    assert rows[1]["submission"]["index"] == 1_000_000
    assert (rows[1]["submission"]["A"], rows[1]["target"]) == ("hruška", "A")
    (results,) = out.glob("a_model/*_results.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    report = score_file("mmbench", run / "predictions" / "mm.cs.jsonl")
    assert found["results"]["mm_lrm_cs"]["circular_accuracy,none"] == report.headline == 50.0
    replay = json.loads((out / "replay" / "a_model_mm_lrm_cs.json").read_text(encoding="utf-8"))
    assert [log["resps"] for log in replay["logs"]] == [[[text]] for text in TEXTS]
    assert replay["model_configs"] == {"task": "mm_lrm_cs"} and replay["args"]["limit"] is None


def with_answered(exported, **changes):
    """The same with other questions or answers."""
    answered = replace(exported.result.answered, **changes)
    return replace(exported, result=replace(exported.result, answered=answered))


def test_a_column_for_each_option(run):
    (answers,) = read_run(run)
    first, *rest = answers.result.items
    first = replace(first, options=tuple("abcdefghi"))
    rows = rows_of(with_answered(answers, items=(first, *rest)))
    assert [rows[0][letter] for letter in "ABCDEFGHI"] == list("abcdefghi")
    assert [rows[1][letter] for letter in "ABCDEFGHI"] == ["hruška", "jablko", *[""] * 7]


def test_vlmevalkit_tables_give_the_answers_back(run, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    invoke("predictions", run, "--to", "vlmevalkit", "--out", tmp_path / "kit")
    invoke("predictions", run, "--to", "vlmevalkit", "--out", tmp_path / "kit", "--format", "tsv")
    (book,) = (tmp_path / "kit").glob("a_model/T*/a_model_mm_cs.xlsx")
    sheet = openpyxl.load_workbook(book).active
    assert "f" not in {cell.data_type for row in sheet.iter_rows() for cell in row}
    head, *cells = sheet.iter_rows(values_only=True)
    rows = [dict(zip(head, row, strict=True)) for row in cells]
    assert [row["prediction"] or "" for row in rows] == TEXTS
    assert [row["index"] for row in rows] == [0, 1_000_000, 1, 1_000_001]
    kinds = {cell.column_letter: cell.data_type for cell in sheet[4]}
    assert kinds["A"] == "n" and set(kinds.values()) == {"n", "s"}
    assert rows[0]["B"] == "hruška" and "image" not in rows[0]
    (table,) = (tmp_path / "kit").glob("a_model/T*/a_model_mm_cs.tsv")
    with table.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file, delimiter="\t"))
    assert [row["prediction"] for row in read] == TEXTS


def test_the_kits_pope_has_its_labels_and_one_row_a_question(answered, tmp_path):
    golds = [("random", "0", "yes"), ("popular", "0", "yes"), ("popular", "1", "no")]
    items = [
        question("pope", number, gold, category, image_id=number, text=f"Is {number} there?")
        for category, number, gold in golds
    ]
    rows = rows_of(answered("pope", items, ["Yes", "Yes", "No, not."]))
    assert [(row["index"], row["answer"], row["category"]) for row in rows] == [
        (0, "Yes", "random,popular"), (1, "No", "popular"),
    ]  # fmt: skip
    # the owner's ids begin anew in each category: they are no index
    own = [dataclasses.replace(item, image_id=item.category, source_id="1") for item in items]
    found = answered("pope", own, ["Yes", "No", "No"])
    assert [row["index"] for row in rows_of(found)] == [0, 1, 2]


def test_the_kit_counts_the_questions_of_seed_bench(answered, tmp_path, caplog):
    items = [question("seed_bench", number, "A", "1") for number in ("101669", "7", "30")]
    found = answered("seed_bench", items, ["A", "B", "A"])
    assert [(row["index"], row["prediction"]) for row in rows_of(found)] == [
        (0, "A"), (1, "B"), (2, "A"),
    ]  # fmt: skip
    export_vlmevalkit([found], tmp_path / "kit", "tsv")
    assert not caplog.records
    lost = dataclasses.replace(found, is_in_order=False)
    (path,) = export_vlmevalkit([lost], tmp_path / "kit", "tsv")
    assert path.name == "a_model_SEEDBench_IMG.tsv" and "give --benchmark-dir" in caplog.text
    # its own TSV has these numbers already
    items = [question("seed_bench", number, "A", "1") for number in ("2", "0", "1")]
    texts = {item.question_id: "A" for item in items}
    shuffled = with_answered(found, items=tuple(items), texts=texts)
    assert [row["index"] for row in rows_of(shuffled)] == [2, 0, 1]


def test_entries_of_lmms_eval_are_read_as_it_reads(answered, tmp_path):
    items = [question("pope", str(n), "yes", "random", text=f"Is {n}?") for n in range(2)]
    pope = answered("pope", items, ["Yes", "Yes, it is."])
    items = [question("seed_bench", str(n), "B", "1") for n in range(2)]
    seed = answered("seed_bench", items, ["B. Two", "Two"])
    export_lmms_eval([pope, seed], tmp_path / "logs")

    def read(task):
        (path,) = (tmp_path / "logs").glob(f"a_model/*_samples_{task}.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    rows = read("pope")
    assert [row["mode"] for row in rows] == ["lmms-eval"] * 2
    assert [row["pope_accuracy"]["score"] for row in rows] == [1.0, 0.0]
    assert [row["pope_accuracy"]["prediction"] for row in rows] == ["yes", "yes, it is."]
    assert [row["seed_image"]["pred"] for row in read("seedbench")] == ["B", ""]
    (results,) = (tmp_path / "logs").glob("a_model/*_results.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["pope"]
    assert (found["mode"], found["mean_F1,none"]) == ("llava", 100.0)
    # for lmms-eval's own task, and for the one that is exported
    names = {path.stem for path in (tmp_path / "logs" / "replay").iterdir()}
    assert names == {
        "a_model_pope", "a_model_pope_lrm_en", "a_model_seedbench", "a_model_seed_bench_lrm_en",
    }  # fmt: skip


def test_answers_are_in_the_order_of_the_benchmark(run, folder):
    (answers,) = read_run(run)
    assert answers.is_in_order and answers.result.items == questions()
    # another benchmark lies there now
    path = folder / "cs.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("stole?", "zemi?"), encoding="utf-8")
    (answers,) = read_run(run)
    assert not answers.is_in_order and answers.result.items[0].question_id == "1000001"


def test_ids_that_are_no_numbers_are_counted(run):
    (answers,) = read_run(run)
    assert [row["index"] for row in rows_of(answers)] == [0, 1_000_000, 1, 1_000_001]
    items = tuple(Item(f"q{n}", "a", "t", "c", "Yes", "cs", "yesno") for n in range(2))
    named = with_answered(answers, items=items, texts={"q0": "", "q1": ""})
    assert [row["index"] for row in rows_of(named)] == [0, 1]


def test_what_cannot_be_exported_is_said(run, folder, tmp_path):
    path = run / "predictions" / "mm.cs.jsonl"
    with pytest.raises(ConfigError, match="expected lmms-eval or vlmevalkit"):
        invoke("predictions", run, "--to", "other", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="--format is 'csv'"):
        export_vlmevalkit(read_run(run), tmp_path / "x", "csv")
    with pytest.raises(DataError, match="no answers to export; it has mm cs"):
        invoke("predictions", run, "--to", "lmms-eval", "--out", tmp_path, "--languages", "hr")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(DataError, match="1 of 4 questions have no answer"):
        list(read_run(run, benchmark_dir=folder.parent))
    path.write_text("".join(lines).replace('"version": "x-4', '"version": "y-4'), encoding="utf-8")
    with pytest.raises(DataError, match="the answers are to version y-4"):
        list(read_run(run, benchmark_dir=folder.parent))


def test_a_dataset_is_loaded_by_datasets(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    invoke("benchmark", folder, "--to", "hf", "--out", tmp_path / "hf", "--licence", "cc-by-4.0")
    loaded = datasets.load_dataset(
        str(tmp_path / "hf"), "cs", split="test", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0]["image"].size == (6, 4)
    records = [
        {k: v for k, v in row.items() if k != "image"} | {"image": row["image_path"]}
        for row in loaded
    ]
    assert [Item.from_record(row, "x") for row in records] == list(questions())
    head = yaml.safe_load((tmp_path / "hf" / "README.md").read_text().split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == ["cs"]
    assert head["license"] == "cc-by-4.0"


def test_a_missing_picture_or_language_is_an_error(folder, tmp_path):
    with pytest.raises(DataError, match=r"has no hr\.jsonl"):
        invoke("benchmark", folder, "--to", "hf", "--out", tmp_path / "a", "--languages", "hr")
    (tmp_path / "pictures" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 images are missing \(1.png\)"):
        invoke("benchmark", folder, "--to", "hf", "--out", tmp_path / "b")


class Tasks(yaml.SafeLoader):
    """Reads `!function module.name` as its text."""


Tasks.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("texts", [TEXTS, ["B", "A", "pear", "pear"]])
def test_task_files_give_our_score(folder, tmp_path, texts):
    datasets = pytest.importorskip("datasets")
    # an answer in English is right only to who knows the options in English
    english = [
        replace(
            item, lang="en",
            options=tuple({"jablko": "apple", "hruška": "pear"}[o] for o in item.options),
        )
        for item in questions()
    ]  # fmt: skip
    write_folder(folder, "mmbench", "en", english, tmp_path / "pictures", tmp_path / "x.tsv")
    run = answer(folder, "cs", questions(), texts, tmp_path / "run")
    expected = 50.0 if texts is TEXTS else 100.0
    invoke("benchmark", folder, "--to", "hf", "--out", tmp_path / "hf")
    args = ("--to", "lmms-eval", "--out", tmp_path / "tasks", "--dataset", tmp_path / "hf")
    invoke("benchmark", folder, *args)
    task = yaml.load((tmp_path / "tasks" / "mm_lrm_cs.yaml").read_text(), Tasks)
    group = yaml.safe_load((tmp_path / "tasks" / "mm_lrm.yaml").read_text())
    assert group["task"] == [task["task"], "mm_lrm_en"] == ["mm_lrm_cs", "mm_lrm_en"]
    spec = importlib.util.spec_from_file_location("utils", tmp_path / "tasks" / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)

    def call(name, *arguments):
        return getattr(utils, name.removeprefix("utils."))(*arguments)

    docs = datasets.load_dataset(
        task["dataset_path"], task["dataset_name"], split=task["test_split"],
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert call(task["doc_to_visual"], docs[0])[0].mode == "RGB"
    (deep,) = call(task["doc_to_visual"], {"image": Image.new("I;16", (2, 1), 20_000)})
    assert deep.getpixel((0, 0)) == (78, 78, 78)
    assert call(task["doc_to_text"], docs[0]) == "Co je na stole?"
    (metric,) = task["metric_list"]
    kept = [
        call(task["process_results"], doc, [text])[metric["metric"]]
        for doc, text in zip(docs, texts, strict=True)
    ]
    report = score_file("mmbench", run / "predictions" / "mm.cs.jsonl", data=folder)
    assert call(metric["aggregation"], kept) == report.headline == expected
    # of answers alone only gaps are known: a later rotation may not exist, an earlier one must
    assert call(metric["aggregation"], kept[:1]) == 100.0
    assert call(metric["aggregation"], kept[1:]) == expected - 50
    invoke("predictions", run, "--to", "lmms-eval", "--out", tmp_path / "logs")
    (replay,) = (tmp_path / "logs" / "replay").iterdir()
    assert json.loads(replay.read_text(encoding="utf-8"))["model_configs"]["task"] == task["task"]
