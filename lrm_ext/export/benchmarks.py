"""Exports a benchmark as a Hugging Face dataset, and as tasks of lmms-eval on that dataset.

Input: a benchmark folder and languages. `export_dataset` writes `data/<lang>/test-*.parquet` with
the images (one configuration per language, split `test`) and a dataset card;
`datasets.load_dataset(folder, "cs")` and the Hub read them. `export_tasks` writes a folder for
lmms-eval's `--include_path`: a YAML file per language, a group, and `utils.py`, which scores
answers by the rules of `lrm benchmark score` and needs this project beside lmms-eval.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from llava.errors import DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import Benchmark, missing_images
from lrm_ext.evaluate.translating import TRANSLATION_DIR, kind_of_folder
from lrm_ext.files import refuse_existing
from lrm_ext.languages.registry import get_language

CARD: Final = "README.md"
_TEXTS: Final = (
    "question_id", "image_path", "text", "question", "hint", "answer", "category",
    "supercategory", "lang", "answer_type", "answer_lang", "group", "image_id", "source_id",
    "translation", "engine",
)  # fmt: skip
_LISTS: Final = ("options", "answers")
_ROWS_PER_GROUP: Final = 256
_NUM_SHOWN: Final = 5
_MAX_NEW_TOKENS: Final = 32

_UTILS: Final = Template(
    '''"""Prompts and scores $name; written by `lrm export benchmark`."""

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
    items, texts = [], {}
    for answer in answers:
        record = dict(answer["record"], image=answer["record"]["image_path"])
        item = Item.from_record(record, "lmms-eval")
        items.append(item)
        texts[item.question_id] = answer["text"]
    kind = get_kind(KIND)
    items += kind.skipped(items)
    return score_benchmark(
        kind, items, texts, lang=items[0].lang, allow_missing=True
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
    fields += [(name, pa.list_(pa.string())) for name in _LISTS]
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, **dict.fromkeys(_TEXTS, text)}
    features |= dict.fromkeys(_LISTS, {"feature": text, "_type": "Sequence"})
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
        DataError: A language or an image is missing.
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
    schema = _schema()
    for lang, items in questions.items():
        path = out / "data" / lang / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        made = _made(benchmark, lang)
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(items), _ROWS_PER_GROUP):
                some = items[start : start + _ROWS_PER_GROUP]
                rows = list(_rows(benchmark, some, made))
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    write_atomically(out / CARD, _card(benchmark, questions, licence))
    return chosen


def _made(benchmark: Benchmark, lang: str) -> dict[str, tuple[str, str]]:
    """Returns status and engine of each question's translation; empty if it was not translated."""
    path = benchmark.folder / TRANSLATION_DIR / f"{lang}.jsonl"
    if not path.is_file():
        return {}
    made = {}
    for _, row in read_json_lines(path):
        status = "corrected" if row.get("corrected") else str(row.get("status"))
        status = "in English" if row.get("status") == "rejected" else status
        made[str(row["question_id"])] = (status, str(row.get("engine") or ""))
    return made


def _rows(
    benchmark: Benchmark, items: Sequence[Item], made: dict[str, tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    for item in items:
        status, engine = made.get(item.question_id, ("", ""))
        path = benchmark.image_path(item.image)
        row: dict[str, Any] = {"image": {"bytes": path.read_bytes(), "path": path.name}}
        row |= {"image_path": item.image, "translation": status, "engine": engine}
        row |= {name: getattr(item, name) for name in _TEXTS if name not in row}
        yield row | {name: list(getattr(item, name)) for name in _LISTS}


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
            f"| {get_language(lang).name} (`{lang}`) | {len(items)} | "
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
