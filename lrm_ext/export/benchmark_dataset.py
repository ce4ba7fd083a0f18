"""A benchmark folder as a Hugging Face dataset: Parquet with pictures, and a card.

Input: a benchmark folder, in some languages. Output: `data/<lang>/test-*.parquet` (a configuration
a language, split `test`) and `README.md`; `datasets.load_dataset(folder, "cs")` reads it, and so
does the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from llava.errors import ConfigError, DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import Benchmark, missing_images
from lrm_ext.evaluate.translating import TRANSLATION_DIR, kind_of_folder
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


def _schema() -> pa.Schema:
    """Columns, with the note by which `datasets` knows that `image` is a picture."""
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [pa.field("image", picture)]
    fields += [pa.field(name, pa.string()) for name in _TEXTS]
    fields += [pa.field(name, pa.list_(pa.string())) for name in _LISTS]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in _TEXTS}
    text = {"dtype": "string", "_type": "Value"}
    features |= {name: {"feature": text, "_type": "Sequence"} for name in _LISTS}
    note = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": note})


def export_dataset(
    benchmark: Benchmark, out: Path, languages: Sequence[str] = (), licence: str = "unknown"
) -> tuple[str, ...]:
    """Write the dataset.

    Args:
        benchmark: The benchmark.
        out: A new folder.
        languages: Codes; empty for all.
        licence: For the card: the benchmark's own, in the Hub's notation.

    Returns:
        The languages.

    Raises:
        ConfigError: The folder exists.
        DataError: A language or a picture is missing.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose a new folder")
    chosen = tuple(languages) or benchmark.languages()
    questions = {lang: benchmark.read(lang) for lang in chosen}
    every = [item for items in questions.values() for item in items]
    if missing := missing_images(benchmark, every):
        raise DataError(
            f"{benchmark.folder}: {len(missing)} pictures are missing "
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
    """By question: what became of its translation, and the engine; empty if people wrote it."""
    path = benchmark.folder / TRANSLATION_DIR / f"{lang}.jsonl"
    if not path.is_file():
        return {}
    return {
        str(row["question_id"]): (_status(row), str(row.get("engine") or ""))
        for _, row in read_json_lines(path)
    }


def _status(row: dict[str, Any]) -> str:
    if row.get("status") == "rejected":
        return "in English"
    return "corrected" if row.get("corrected") else str(row.get("status"))


def _rows(
    benchmark: Benchmark, items: Sequence[Item], made: dict[str, tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    for item in items:
        status, engine = made.get(item.question_id, ("", ""))
        picture = benchmark.image_path(item.image)
        row: dict[str, Any] = {"image": {"bytes": picture.read_bytes(), "path": picture.name}}
        row |= {"image_path": item.image, "translation": status, "engine": engine}
        row |= {name: getattr(item, name) for name in _TEXTS if name not in row}
        yield row | {name: list(getattr(item, name)) for name in _LISTS}


def _card(benchmark: Benchmark, questions: dict[str, list[Item]], licence: str) -> str:
    """The card: its head is read by the Hub, and by `datasets`."""
    head = ["---", f"pretty_name: {json.dumps(benchmark.name)}", f"license: {json.dumps(licence)}"]
    head += ["language:", *(f"- {lang}" for lang in questions)]
    head += ["task_categories:", "- visual-question-answering", "configs:"]
    for lang in questions:
        head += [f"- config_name: {lang}", "  data_files:", "  - split: test"]
        head.append(f"    path: data/{lang}/test-*.parquet")
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

Questions about pictures for `{kind.title}`, scored by {kind.headline}; written by
`lrm export benchmark`. Column `text` is what a model is asked. Letters, yes and no in `answer` are
labels and the same in every language. `translation` says of each question what became of it: ok,
suspect (a check doubts it), corrected (people wrote a part), or in English (it has no good
translation).
Pictures and questions stay under the licence of the benchmark that they come from.

"""
    return "\n".join([*head, "---", words.strip(), "", *table, ""])
