"""A benchmark as task files of lmms-eval: a YAML file a language, a group, and `utils.py`.

Input: the dataset of `benchmark_dataset.py`, in a folder or on the Hub. Output: a folder for
lmms-eval's `--include_path`. Answers are read and scored by this project's rules, so it must be
installed beside lmms-eval; the figure is that of `lrm benchmark score`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Final

from llava.errors import ConfigError
from llava.files import write_atomically
from lrm_ext.evaluate.registry import Benchmark
from lrm_ext.evaluate.translating import kind_of_folder

_MAX_NEW_TOKENS: Final = 32

_UTILS: Final = Template(
    '''"""How $name is asked and scored; written by `lrm export benchmark`."""

from llava.images import apply_orientation, to_rgb
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.results import score_benchmark

KIND = "$kind"


def visual(doc):
    """The image, as this project's own evaluation shows it."""
    return [to_rgb(apply_orientation(doc["image"]))]


def prompt(doc, lmms_eval_specific_kwargs=None):
    """What the model is asked."""
    return doc["text"]


def target(doc):
    """The expected answer."""
    return doc["answer"]


def process(doc, results):
    """Keep the answer and all that it is scored by."""
    record = {key: value for key, value in doc.items() if key != "image"}
    return {"$metric": {"record": record, "text": str(results[0]).strip()}}


def aggregate(answers):
    """The benchmark's figure over the questions of one language that were asked.

    Of what `--limit` leaves out, the other half of an MME pair and a rotation of MMBench below the
    highest one that was asked are wrong; the rest does not count.
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


def exported_task(benchmark: str, lang: str) -> str:
    """The task's name; answers that are exported for replay are to a task of the same name."""
    return f"{_group(benchmark)}_{lang}"


def _group(benchmark: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in benchmark).lower() + "_lrm"


def export_tasks(
    benchmark: Benchmark, out: Path, dataset: str, languages: Sequence[str] = ()
) -> list[Path]:
    """Write the task files.

    Args:
        benchmark: The benchmark.
        out: A new folder.
        dataset: The dataset's folder or its name on the Hub.
        languages: Codes; empty for all.

    Returns:
        The files.

    Raises:
        ConfigError: The folder exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose a new folder")
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
