"""Exports answers and benchmarks for lmms-eval, VLMEvalKit and Hugging Face datasets.

Answers are those of a run, read into one `ExportedResult` per benchmark and language. A file that
does not answer all questions of its benchmark is refused, because other tools would score it as if
it were complete.

lmms-eval: `<model>/<time>_samples_<task>.jsonl` has one line per question,
`<model>/<time>_results.json` the scores of `lrm eval`, and `replay/<model>_<task>.json` the answers
for lmms-eval's model `from_log`. The task is the one that `export_tasks` writes; a benchmark that
lmms-eval has itself gets a second replay log under lmms-eval's name. `doc_id` is the position of a
question in our file, which is lmms-eval's own only if the benchmark was imported from the same
Parquet files.

VLMEvalKit: `<model>/T<time>/<model>_<dataset>.xlsx` (or `.tsv`) has all columns of the benchmark
except the image, with the kit's labels (`Yes`, `No`), and the column `prediction`, which the kit
scores with `--mode eval --reuse`. `index` is that of the kit's own TSV if the benchmark was
imported from it. Otherwise it is the benchmark's number if that is unique (MMBench), or the
position of the question, from 0 (SEED-Bench).

Benchmarks: `export_dataset` writes `data/<lang>/test-*.parquet` with the images (one configuration
per language, split `test`) and a dataset card; `datasets.load_dataset(folder, "cs")` and the Hub
read them. `export_tasks` writes a folder for lmms-eval's `--include_path`: a YAML file per
language, a group, and `utils.py`, which scores answers by the rules of `lrm benchmark score` and
needs this project beside lmms-eval.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from llava.errors import ConfigError, DataError
from llava.eval.eval_mme import COGNITION as MME_COGNITION
from llava.eval.records import read_json_lines
from llava.files import refuse_existing, write_atomically, writing
from lrm_ext.evaluate.items import LETTERS, Item
from lrm_ext.evaluate.kind import Verdict
from lrm_ext.evaluate.registry import Benchmark, get_benchmark, missing_images
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    ScoreReport,
    answer_files,
    asked_benchmark,
    open_result,
)
from lrm_ext.evaluate.translating import kind_of_folder, translation_records, write_table
from lrm_ext.languages.registry import language_name

log = logging.getLogger(__name__)

_NUM_SHOWN = 5


@dataclass(frozen=True)
class ExportedResult:
    """The answers to one benchmark in one language.

    Attributes:
        result: Questions, answers and verdicts.
        model: Name of the model.
        written: Modification time of the file in UTC, so that exports of it have the same name.
        is_in_order: Whether the items are all questions of the benchmark in its order.
    """

    result: RunResult
    model: str
    written: datetime.datetime
    is_in_order: bool

    def name_in(self, names: Mapping[tuple[str, str], str]) -> str | None:
        """Returns a tool's own name of the benchmark; None if it has none.

        Args:
            names: Names of the original benchmarks by kind and language. A small version of a
                benchmark does not have its name.
        """
        own = names.get((self.result.kind.name, self.result.lang))
        is_itself = self.result.benchmark.replace("-", "_") in (self.result.kind.name, own)
        return own if is_itself else None


def _file_name(model: str) -> str:
    """Converts the name of a model to a part of a path."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in model).strip(".") or "model"


def read_run(
    run: Path,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    benchmark_dir: Path | None = None,
) -> Iterator[ExportedResult]:
    """Reads the answers of a run.

    Args:
        run: Folder of the model, or of its results.
        benchmarks: Names; empty for all.
        languages: Language codes; empty for all.
        benchmark_dir: Parent of the benchmarks' folders, for complete questions in their order. By
            default the folder that `lrm eval` used, if it still has the same questions.

    Yields:
        The answers of each file, in the order of the files.

    Raises:
        DataError: No file matches, or a file is damaged, of another version, or incomplete.
    """
    files = answer_files(run)
    chosen = {
        (name, lang): path
        for (name, lang), path in files.items()
        if (not benchmarks or name in benchmarks) and (not languages or lang in languages)
    }
    if not chosen:
        there = ", ".join(f"{name} {lang}" for name, lang in files)
        raise DataError(f"{run}: no answers to export; it has {there or 'none'}")
    for (name, lang), path in chosen.items():
        yield _read(name, lang, path, benchmark_dir)


def _read(name: str, lang: str, path: Path, benchmark_dir: Path | None) -> ExportedResult:
    items, version = None, ""
    if benchmark_dir is not None:
        benchmark = get_benchmark(name, benchmark_dir)
        items, version = benchmark.read(lang), benchmark.versions.get(lang, "")
    result = open_result(path, name, lang, items=items, version=version)
    if items is None and (items := _asked(path, name, lang, result.items)):
        result = open_result(path, name, lang, items=items, version=result.answered.version)
    if missing := [i.question_id for i in result.items if i.question_id not in result.texts]:
        raise DataError(
            f"{path}: {len(missing)} of {len(result.items)} questions have no answer "
            f"({', '.join(missing[:_NUM_SHOWN])}); `lrm eval` goes on where it stopped"
        )
    _, first = next(read_json_lines(path))
    written = datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.timezone.utc)
    model = str(first.get("model_id") or "model")
    return ExportedResult(result, model, written, is_in_order=items is not None)


def _asked(path: Path, name: str, lang: str, answered: Sequence[Item]) -> list[Item] | None:
    """Returns the benchmark's questions in order, if exactly these were answered; else None."""
    benchmark = asked_benchmark(path.parent, name)
    if benchmark is None or not benchmark.path(lang).is_file():
        return None
    items = benchmark.read(lang)
    texts = {item.question_id: item.text for item in items}
    return items if texts == {item.question_id: item.text for item in answered} else None


_LMMS_EVAL: Final = "lmms-eval"
# lmms-eval's own names of tasks by kind and language.
_TASKS: Final = {
    ("mme", "en"): "mme",
    ("pope", "en"): "pope",
    ("seed_bench", "en"): "seedbench",
    ("mmbench", "en"): "mmbench_en_dev",
    ("mmbench", "zh"): "mmbench_cn_dev",
    ("mmbench", "ru"): "mmbench_ru_dev",
}


def export_lmms_eval(run: Iterable[ExportedResult], out: Path) -> list[Path]:
    """Writes answers as logs of lmms-eval.

    Args:
        run: The answers of one model.
        out: Folder of the logs.

    Returns:
        The written files, in order.
    """
    written: list[Path] = []
    results: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {}
    every = list(run)
    stamp = f"{max(answers.written for answers in every):%Y%m%d_%H%M%S}"
    model = _file_name(every[0].model)
    for answers in every:
        result = answers.result
        exported = exported_task(result.benchmark, result.lang)
        task = answers.name_in(_TASKS) or exported
        report = result.score()
        path = out / model / f"{stamp}_samples_{task}.jsonl"
        write_atomically(path, "".join(_samples(result, report)))
        written.append(path)
        for name in dict.fromkeys((task, exported)):
            replay = out / "replay" / f"{model}_{name}.json"
            write_atomically(replay, json.dumps(_replay(answers, name), ensure_ascii=False))
            written.append(replay)
        results[task] = {
            "alias": task,
            f"{report.headline_name.replace(' ', '_')},none": report.headline,
            "mode": report.mode,
            "version": result.answered.version,
        }
        sizes[task] = {"original": len(result.items), "effective": len(result.items)}
    content = {
        "results": results,
        "n-samples": sizes,
        "model_name": model,
        "config": {"model": model, "limit": None},
        "date": stamp,
    }
    path = out / model / f"{stamp}_results.json"
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=2))
    return [*written, path]


def _samples(result: RunResult, report: ScoreReport) -> Iterable[str]:
    mode, verdicts = report.mode, report.verdicts
    if result.lang == ENGLISH and _LMMS_EVAL in result.kind.modes:
        # the entries follow lmms-eval, including its way to read an answer
        mode = _LMMS_EVAL
        verdicts = result.verdicts(mode)
    by_key = {verdict.key: verdict for verdict in verdicts}
    for number, item in enumerate(result.items):
        text = result.texts[item.question_id]
        doc = json.dumps(item.to_record(), sort_keys=True, ensure_ascii=False)
        record = {
            "doc_id": number,
            "input": item.text,
            "target": item.answer,
            "filtered_resps": text,
            "doc_hash": hashlib.sha256(doc.encode()).hexdigest(),
            "mode": mode,
            **_entries(result.kind.name, item, text, by_key[item.question_id]),
        }
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _entries(kind: str, item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
    """Returns what lmms-eval's task of a kind keeps of an answer, by the names of its metrics."""
    score = float(verdict.correct) if verdict.value is None else verdict.value
    said: dict[str, Any]
    match kind:
        case "mme":
            part = "cognition" if item.category in MME_COGNITION else "perception"
            said = {"question_id": item.image_id, "category": item.category, "score": score}
            return {f"mme_{part}_score": said}
        case "pope":
            is_read = verdict.parsed in ("yes", "no")
            said = {
                "question_id": item.source_id or item.question_id,
                "score": score,
                "prediction": verdict.parsed if is_read else text.strip().lower(),
                "ground_truth": verdict.gold,
            }
            names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
            return {f"pope_{name}": said for name in names}
        case "seed_bench":
            letter = verdict.parsed if len(verdict.parsed) == 1 else ""
            said = {"pred": letter, "answer": item.answer, "question_id": item.question_id}
            return {"seed_image": said, "seed_all": said}
        case "mmbench":
            said = {
                "index": int(item.source_id or item.question_id),
                "question": item.question or item.text,
                "answer": item.answer,
                "prediction": text,
                "hint": item.hint,
                "source": "",
                "split": "dev",
                "category": item.category,
                "L2-category": item.supercategory,
                **item.lettered(),
            }
            return {"gpt_eval_score": said, "submission": said}
    said = {"question_id": item.question_id, "category": item.category, "score": score}
    return {"score": said}


def _replay(answers: ExportedResult, task: str) -> dict[str, Any]:
    return {
        "args": {"model": _file_name(answers.model), "model_args": "", "limit": None},
        "model_configs": {"task": task},
        "time": f"{answers.written:%m%d_%H%M}",
        "logs": [
            {"doc_id": number, "resps": [[answers.result.texts[item.question_id]]]}
            for number, item in enumerate(answers.result.items)
        ],
    }


FORMATS: Final = ("xlsx", "tsv")
# VLMEvalKit's own names of datasets by kind and language.
_DATASETS: Final = {
    ("mme", "en"): "MME",
    ("pope", "en"): "POPE",
    ("seed_bench", "en"): "SEEDBench_IMG",
    ("mmbench", "en"): "MMBench_DEV_EN",
    ("mmbench", "zh"): "MMBench_DEV_CN",
}
_MAX_CELL_CHARS: Final = 32_767
# the kit's spelling of labels
_LABELS: Final = {"yes": "Yes", "no": "No"}


def export_vlmevalkit(run: Iterable[ExportedResult], out: Path, form: str = "xlsx") -> list[Path]:
    """Writes answers as tables of VLMEvalKit.

    Args:
        run: The answers of one model.
        out: Work folder of the kit.
        form: One of `FORMATS`.

    Returns:
        The written files.

    Raises:
        ConfigError: The format is unknown, or openpyxl is not installed.
        DataError: A text does not fit into a cell.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format is {form!r}; expected one of {', '.join(FORMATS)}")
    written: list[Path] = []
    every = list(run)
    model = _file_name(every[0].model)
    folder = out / model / f"T{max(answers.written for answers in every):%Y%m%d-%H%M%S}"
    for answers in every:
        result = answers.result
        own = answers.name_in(_DATASETS)
        name = own or f"{result.benchmark}_{result.lang}".replace("-", "_")
        path = folder / f"{model}_{name}.{form}"
        if own and not answers.is_in_order and not _own_numbers(answers):
            log.warning(
                "%s: the kit numbers the questions by their place in the benchmark, which the "
                "answers do not tell; give --benchmark-dir", path,
            )  # fmt: skip
        rows = rows_of(answers)
        if form == "xlsx":
            _write_xlsx(path, rows)
        else:
            write_table(path, list(rows[0]), rows)
        written.append(path)
    return written


def rows_of(answers: ExportedResult) -> list[dict[str, Any]]:
    """Returns the table with one row per question; all rows have the same columns."""
    result = answers.result
    numbers = _own_numbers(answers) or range(len(result.items))
    letters = LETTERS[: max((len(item.options) for item in result.items), default=0)]
    rows: list[dict[str, Any]] = [
        {
            "index": number,
            "question": item.question or item.text,
            "hint": item.hint,
            **{**dict.fromkeys(letters, ""), **item.lettered()},
            "answer": _LABELS.get(item.answer.lower(), item.answer),
            "category": item.category,
            "l2-category": item.supercategory,
            "image_path": item.image_name,
            "prediction": result.texts[item.question_id],
        }
        for number, item in zip(numbers, result.items, strict=True)
    ]
    unused = {name for name in ("hint", "l2-category") if not any(row[name] for row in rows)}
    rows = [{name: text for name, text in row.items() if name not in unused} for row in rows]
    return _joined(rows) if result.kind.name == "pope" else rows


def _own_numbers(answers: ExportedResult) -> list[int]:
    """Returns the questions' numbers in their source; empty if they cannot be the index."""
    result = answers.result
    own = [item.source_id or item.question_id for item in result.items]
    if not all(text.isdecimal() for text in own):
        return []
    numbers = [int(text) for text in own]
    num_rows = len(numbers)
    if result.kind.name == "pope":
        # in the kit's TSV, a question that several categories share is one row
        asked = zip(numbers, result.items, strict=True)
        num_rows = len({(number, item.image_id, item.text) for number, item in asked})
    if result.kind.name == "seed_bench" and set(numbers) != set(range(num_rows)):
        # the ids of SEED-Bench.json; the kit counts the questions about images
        return []
    return numbers if len(set(numbers)) == num_rows else []


def _joined(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins the rows of a question that several categories share, as in the kit's POPE.

    Raises:
        DataError: The question has different answers.
    """
    by_index: dict[int, dict[str, Any]] = {}
    for row in rows:
        first = by_index.setdefault(row["index"], row)
        if first is not row:
            if first["prediction"] != row["prediction"]:
                raise DataError(
                    f"question {row['index']} is answered {first['prediction']!r} in "
                    f"{first['category']} and {row['prediction']!r} in {row['category']}; the kit "
                    "has one row for both"
                )
            first["category"] += f",{row['category']}"
    return list(by_index.values())


def _write_xlsx(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        openpyxl = import_module("openpyxl")
        illegal = import_module("openpyxl.cell.cell").ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise ConfigError(
            "xlsx files are written with openpyxl: pip install 'lrm-llava[excel]', or take "
            "--format tsv"
        ) from error
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(rows[0]))
    for number, row in enumerate(rows, 2):
        for column, (name, value) in enumerate(row.items(), 1):
            text = str(value)
            if len(text) > _MAX_CELL_CHARS or illegal.search(text):
                raise DataError(
                    f"{path}: {name} of index {row['index']} has {len(text)} characters or ones "
                    f"that a cell cannot hold (at most {_MAX_CELL_CHARS}); take --format tsv"
                )
            cell = sheet.cell(number, column, value)
            if isinstance(value, str):
                # a text that begins with "=" must not become a formula
                cell.data_type = "s"
    with writing(path) as partial:
        book.save(partial)


CARD: Final = "README.md"
_TEXTS: Final = (
    "question_id", "image_path", "text", "question", "hint", "answer", "category",
    "supercategory", "lang", "answer_type", "answer_lang", "group", "image_id", "source_id",
    "translation", "engine",
)  # fmt: skip
_LISTS: Final = ("options", "answers")
# Those of the same question in English: a model that answers in English is read by them.
_ENGLISH_LISTS: Final = ("english_options", "english_answers")
_ROWS_PER_GROUP: Final = 256
_MAX_NEW_TOKENS: Final = 32

_UTILS: Final = Template(
    '''"""Prompts and scores $name; written by `lrm export benchmark`."""

from dataclasses import replace

from llava.images import apply_orientation, to_rgb
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.scoring import score_benchmark

KIND = "$kind"


def visual(doc):
    """Returns the image as this project's evaluation shows it."""
    return [to_rgb(apply_orientation(doc["image"]))]


def prompt(doc, lmms_eval_specific_kwargs=None):
    """Returns the prompt."""
    return doc["text"]


def target(doc):
    """Returns the expected answer."""
    return doc["answer"]


def process(doc, results):
    """Keeps the answer and the fields that are needed to score it."""
    record = {key: value for key, value in doc.items() if key != "image"}
    return {"$metric": {"record": record, "text": str(results[0]).strip()}}


def aggregate(answers):
    """Returns the score over the questions of one language that were asked.

    Questions that `--limit` leaves out do not count, except for the other half of an MME pair and
    rotations of MMBench below the highest one that was asked: these count as wrong.
    """
    items, english, texts = [], [], {}
    for answer in answers:
        record = dict(answer["record"], image=answer["record"]["image_path"])
        item = Item.from_record(record, "lmms-eval")
        items.append(item)
        texts[item.question_id] = answer["text"]
        if record["english_answers"]:
            options, answers = record["english_options"], record["english_answers"]
            english.append(replace(item, options=tuple(options), answers=tuple(answers)))
    kind = get_kind(KIND)
    items += kind.skipped(items)
    return score_benchmark(
        kind, items, texts, lang=items[0].lang, allow_missing=True, english=english
    ).headline
'''
)

_YAML: Final = Template("""task: $task
dataset_path: $dataset
dataset_name: $lang
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.prompt
doc_to_target: !function utils.target
process_results: !function utils.process
generation_kwargs:
  max_new_tokens: $max_new_tokens
  temperature: 0
  do_sample: false
metric_list:
  - metric: $metric
    aggregation: !function utils.aggregate
    higher_is_better: true
metadata:
  - version: $version
""")


def _schema() -> pa.Schema:
    """Returns the columns, with the note by which `datasets` decodes `image`."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image), *((name, pa.string()) for name in _TEXTS)]
    fields += [(name, pa.list_(pa.string())) for name in (*_LISTS, *_ENGLISH_LISTS)]
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, **dict.fromkeys(_TEXTS, text)}
    features |= dict.fromkeys((*_LISTS, *_ENGLISH_LISTS), {"feature": text, "_type": "Sequence"})
    note = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": note})


def export_dataset(
    benchmark: Benchmark, out: Path, languages: Sequence[str] = (), licence: str = "unknown"
) -> tuple[str, ...]:
    """Writes a benchmark as a dataset.

    Args:
        benchmark: The benchmark.
        out: A new folder.
        languages: Language codes; empty for all.
        licence: Licence of the benchmark for the card, in the Hub's notation.

    Returns:
        The exported languages.

    Raises:
        ConfigError: The folder exists.
        DataError: A language or an image is missing, or a question has several.
    """
    refuse_existing(out)
    chosen = tuple(languages) or benchmark.languages()
    questions = {lang: benchmark.read(lang) for lang in chosen}
    every = [item for items in questions.values() for item in items]
    if missing := missing_images(benchmark, every):
        raise DataError(
            f"{benchmark.folder}: {len(missing)} images are missing "
            f"({', '.join(missing[:_NUM_SHOWN])}); expected them in {benchmark.image_root}"
        )
    if several := [item.question_id for item in every if len(item.images) != 1]:
        raise DataError(
            f"{benchmark.folder}: {len(several)} questions have several images or none "
            f"({', '.join(several[:_NUM_SHOWN])}); a row of the dataset has one"
        )
    schema = _schema()
    has_english = benchmark.path(ENGLISH).is_file()
    english = {i.question_id: i for i in benchmark.read(ENGLISH)} if has_english else {}
    for lang, items in questions.items():
        path = out / "data" / lang / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        made = _made(benchmark, lang)
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(items), _ROWS_PER_GROUP):
                some = items[start : start + _ROWS_PER_GROUP]
                rows = list(_rows(benchmark, some, made, {} if lang == ENGLISH else english))
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    write_atomically(out / CARD, _card(benchmark, questions, licence))
    return chosen


def _made(benchmark: Benchmark, lang: str) -> dict[str, tuple[str, str]]:
    """Returns status and engine of each question's translation; empty if it was not translated."""
    made = {}
    for record in translation_records(benchmark, lang):
        status = "corrected" if record.get("corrected") else str(record.get("status"))
        status = "in English" if record.get("status") == "rejected" else status
        made[str(record["question_id"])] = (status, str(record.get("engine") or ""))
    return made


def _rows(
    benchmark: Benchmark,
    items: Sequence[Item],
    made: dict[str, tuple[str, str]],
    english: Mapping[str, Item],
) -> Iterator[dict[str, Any]]:
    for item in items:
        status, engine = made.get(item.question_id, ("", ""))
        path = benchmark.image_path(item.image_name)
        row: dict[str, Any] = {"image": {"bytes": path.read_bytes(), "path": path.name}}
        row |= {"image_path": item.image_name, "translation": status, "engine": engine}
        row |= {name: getattr(item, name) for name in _TEXTS if name not in row}
        row |= {name: list(getattr(item, name)) for name in _LISTS}
        same = english.get(item.question_id)
        row["english_options"] = list(same.options) if same else []
        row["english_answers"] = list(same.answers or (same.answer,)) if same else []
        yield row


def _card(benchmark: Benchmark, questions: dict[str, list[Item]], licence: str) -> str:
    """Returns the dataset card; the Hub and `datasets` read its head."""
    head = DatasetCardData(
        pretty_name=benchmark.name,
        license=licence,
        language=list(questions),
        task_categories=["visual-question-answering"],
        configs=[
            {
                "config_name": lang,
                "data_files": [{"split": "test", "path": f"data/{lang}/test-*.parquet"}],
            }
            for lang in questions
        ],
    )
    table = [
        "| language | questions | translated by | asked in English | version |",
        "|---|---|---|---|---|",
    ]
    for lang, items in questions.items():
        made = _made(benchmark, lang)
        engines = sorted({engine for _, engine in made.values() if engine})
        english = sum(status == "in English" for status, _ in made.values())
        table.append(
            f"| {language_name(lang)} (`{lang}`) | {len(items)} | "
            f"{'; '.join(engines) or '-'} | {english} | {benchmark.versions.get(lang) or '-'} |"
        )
    kind = kind_of_folder(benchmark)
    words = f"""
# {benchmark.name}

Questions about images for `{kind.title}`, scored by {kind.headline}; written by
`lrm export benchmark`. Column `text` holds the prompt. Letters, yes and no in `answer` are labels
and the same in every language. `translation` is the state of each question's translation: ok,
suspect (a check doubts it), corrected (people wrote a part), or in English (no good translation
exists). Images and questions stay under the licence of the benchmark that they come from.

"""
    return "\n".join(["---", head.to_yaml(), "---", words.strip(), "", *table, ""])


def exported_task(benchmark: str, lang: str) -> str:
    """Returns the name of the task, which exported answers use as well."""
    return f"{_group(benchmark)}_{lang}"


def _group(benchmark: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in benchmark).lower() + "_lrm"


def export_tasks(
    benchmark: Benchmark, out: Path, dataset: str, languages: Sequence[str] = ()
) -> list[Path]:
    """Writes a benchmark as tasks of lmms-eval.

    Args:
        benchmark: The benchmark.
        out: A new folder.
        dataset: Folder of the dataset, or its name on the Hub.
        languages: Language codes; empty for all.

    Returns:
        The written files.

    Raises:
        ConfigError: The folder exists.
    """
    refuse_existing(out)
    kind = kind_of_folder(benchmark)
    group = _group(benchmark.name)
    metric = f"{kind.name}_{kind.headline}".replace(" ", "_").replace("-", "_").lower()
    files = {"utils.py": _UTILS.substitute(name=group, kind=kind.name, metric=metric)}
    tasks: list[str] = []
    for lang in tuple(languages) or benchmark.languages():
        tasks.append(exported_task(benchmark.name, lang))
        files[f"{tasks[-1]}.yaml"] = _YAML.substitute(
            task=tasks[-1],
            dataset=json.dumps(dataset),
            lang=lang,
            metric=metric,
            max_new_tokens=_MAX_NEW_TOKENS,
            version=json.dumps(benchmark.versions.get(lang) or "unknown"),
        )
    lines = [f"group: {group}", "task:", *(f"  - {task}" for task in tasks), ""]
    files[f"{group}.yaml"] = "\n".join(lines)
    for name, text in files.items():
        write_atomically(out / name, text)
    return [out / name for name in files]
