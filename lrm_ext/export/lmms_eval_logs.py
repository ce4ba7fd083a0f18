"""Answers as lmms-eval logs: samples, results, and a log that it can replay.

`<model>/<time>_samples_<task>.jsonl` has a line per question, `<model>/<time>_results.json` the
scores as `lrm eval` reads them, and `replay/<model>_<task>.json` the form that lmms-eval's model
`from_log` answers from. The task is the one that `benchmarks.py` writes for the benchmark; a
benchmark that lmms-eval has itself gets a second replay log under that name. A question's number,
`doc_id`, is its place in our file: it is lmms-eval's own only where the benchmark was imported from
the same Parquet files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from llava.eval.eval_mme import COGNITION as MME_COGNITION
from llava.files import write_atomically
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Verdict
from lrm_ext.evaluate.results import ENGLISH, RunResult, ScoreReport
from lrm_ext.export.answers import ExportedResult, file_name
from lrm_ext.export.benchmarks import exported_task

_LMMS_EVAL: Final = "lmms-eval"
# lmms-eval's own names of tasks, by kind and language; others are named after both.
_TASKS: Final = {
    ("mme", "en"): "mme",
    ("pope", "en"): "pope",
    ("seed_bench", "en"): "seedbench",
    ("mmbench", "en"): "mmbench_en_dev",
    ("mmbench", "zh"): "mmbench_cn_dev",
    ("mmbench", "ru"): "mmbench_ru_dev",
}


def export_lmms_eval(run: Iterable[ExportedResult], out: Path) -> list[Path]:
    """Write the logs.

    Args:
        run: Answers of one model.
        out: Folder.

    Returns:
        The files, in the order of writing.
    """
    written: list[Path] = []
    results: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {}
    every = list(run)
    stamp = f"{max(answers.written for answers in every):%Y%m%d_%H%M%S}"
    model = file_name(every[0].model)
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
        # the entries are lmms-eval's, and so is how it reads an answer
        mode = _LMMS_EVAL
        verdicts = result.verdicts(mode)
    by_key = {verdict.key: verdict for verdict in verdicts}
    entries = _ENTRIES.get(result.kind.name, _other)
    for number, item in enumerate(result.items):
        text = result.texts[item.question_id]
        doc = json.dumps(item.to_record(), sort_keys=True, ensure_ascii=False)
        record = {
            "doc_id": number,
            "input": item.text,
            "target": item.answer,
            "filtered_resps": [text],
            "doc_hash": hashlib.sha256(doc.encode()).hexdigest(),
            "mode": mode,
            **entries(item, text, by_key[item.question_id]),
        }
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _mme(item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
    part = "cognition" if item.category in MME_COGNITION else "perception"
    score = float(verdict.correct)
    said = {"question_id": item.image_id, "category": item.category, "score": score}
    return {f"mme_{part}_score": said}


def _pope(item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
    is_read = verdict.parsed in ("yes", "no")
    said = {
        "question_id": item.source_id or item.question_id,
        "score": float(verdict.correct),
        "prediction": verdict.parsed if is_read else text.strip().lower(),
        "ground_truth": verdict.gold,
    }
    names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
    return {f"pope_{name}": said for name in names}


def _seed(item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
    letter = verdict.parsed if len(verdict.parsed) == 1 else ""
    said = {"pred": letter, "answer": item.answer, "question_id": item.question_id}
    return {"seed_image": said, "seed_all": said}


def _mmbench(item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
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


def _other(item: Item, text: str, verdict: Verdict) -> dict[str, Any]:
    score = float(verdict.correct) if verdict.value is None else verdict.value
    return {"score": {"question_id": item.question_id, "category": item.category, "score": score}}


_ENTRIES: Final[Mapping[str, Callable[[Item, str, Verdict], dict[str, Any]]]] = {
    "mme": _mme,
    "pope": _pope,
    "seed_bench": _seed,
    "mmbench": _mmbench,
}


def _replay(answers: ExportedResult, task: str) -> dict[str, Any]:
    return {
        "args": {"model": file_name(answers.model), "model_args": "", "limit": None},
        "model_configs": {"task": task},
        "time": f"{answers.written:%m%d_%H%M}",
        "logs": [
            {"doc_id": number, "resps": [[answers.result.texts[item.question_id]]]}
            for number, item in enumerate(answers.result.items)
        ],
    }
