"""Stored results of a run: scores and right answers per question, small enough to commit.

`<setting>.seed<k>.json` holds scores by benchmark and language with their counts, and one bit per
question; `questions.json` beside it maps each bit to its question and image. The paired bootstrap
over images therefore works from these files alone, without models or answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import lrm_ext
from llava.errors import DataError
from llava.files import write_atomically
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import LOCAL
from lrm_ext.evaluate.results import ScoreReport, answer_files, open_answers_alone
from tools.reproduce.settings import FINETUNE, PRETRAIN, Setting, Study
from tools.reproduce.tasks import run_name

QUESTIONS_FILE: Final = "questions.json"
FORMAT: Final = 1
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Results:
    """All result files of a folder.

    Attributes:
        pictures: Image of each question, by benchmark.
        runs: Contents of the result files by (setting, seed).
    """

    pictures: Mapping[str, tuple[str, ...]]
    runs: Mapping[tuple[str, int], Mapping[str, Any]]

    def seeds(self, setting: str) -> tuple[int, ...]:
        """Returns the seeds that a setting was run with."""
        return tuple(sorted(seed for name, seed in self.runs if name == setting))

    def languages(self, benchmark: str) -> tuple[str, ...]:
        """Returns the languages of a benchmark, in the order of the files."""
        first = next(iter(self.runs.values()))
        return tuple(first["benchmarks"][benchmark]["languages"])

    def right(self, setting: str, seed: int, benchmark: str, lang: str) -> NDArray[np.bool_]:
        """Returns whether a run answered each question correctly: [Q]."""
        language = self.runs[setting, seed]["benchmarks"][benchmark]["languages"][lang]
        return unpack_bits(language["right"], len(self.pictures[benchmark]))


def collect(
    run: Path, study: Study, setting: Setting, seed: int, command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores the answers of a run.

    Args:
        run: Folder of the model with its answers.
        study: Study that the run belongs to.
        setting: Setting of the run.
        seed: Seed of the run.
        command: Command line that produces the run.

    Returns:
        Contents of the run's result file, and of the file of questions.

    Raises:
        DataError: An answer is missing, or the languages have different questions.
    """
    benchmarks: dict[str, Any] = {}
    questions: dict[str, Any] = {}
    for (name, lang), path in answer_files(run).items():
        # the committed results depend on the answers only, so a stored result is not reused; the
        # small benchmarks ask without letters, and a tool's own mode for English demands them
        result = open_answers_alone(path, name, lang)
        report = result.score(LOCAL)
        keys = sorted(report.right_by_question)
        about = {"keys": keys, "pictures": _pictures(keys, result.items)}
        if questions.setdefault(name, about) != about:
            raise DataError(f"{path}: other questions than in the languages before it")
        entry = benchmarks.setdefault(
            name, {"kind": result.kind.name, "headline": report.headline_name, "languages": {}}
        )
        entry["languages"][lang] = _language(report, keys)
    if missing := [name for name in study.benchmarks if name not in benchmarks]:
        raise DataError(f"{run}: no answers to {', '.join(missing)}")
    versions = {name: metadata.version(name) for name in _PACKAGES}
    content = {
        "format": FORMAT,
        "setting": setting.name,
        "seed": seed,
        "ratio": setting.ratio,
        "pretrain_ratio": setting.pretrain_ratio,
        "instructions": list(setting.instructions),
        **({"groups": list(setting.groups)} if study.groups else {}),
        "steps": {stage: study.steps(setting, stage) for stage in (PRETRAIN, FINETUNE)},
        "command": command,
        "versions": {"python": platform.python_version(), "lrm": lrm_ext.__version__, **versions},
        "machine": platform.machine(),
        "questions_sha256": _digest(questions),
        "benchmarks": benchmarks,
    }
    return content, questions


def _pictures(keys: Sequence[str], items: Sequence[Item]) -> list[str]:
    found = {item.question_id: item.image_name for item in items}
    found |= {item.group: item.image_name for item in items if item.group}
    return [found[key] for key in keys]


def _language(report: ScoreReport, keys: Sequence[str]) -> dict[str, Any]:
    right = [report.right_by_question[key] for key in keys]
    return {
        "score": round(report.headline, 4),
        "right": pack_bits(right),
        "num_right": sum(right),
        "num_questions": len(right),
        "counts": dict(report.counts),
        "fidelity": dict(report.fidelity),
    }


def pack_bits(right: Sequence[bool]) -> str:
    """Encodes right or wrong as base64, one bit each, the first in the highest bit."""
    return base64.b64encode(np.packbits(np.array(right, dtype=bool)).tobytes()).decode("ascii")


def unpack_bits(text: str, number: int) -> NDArray[np.bool_]:
    """Decodes the output of `pack_bits`.

    Raises:
        DataError: The text holds another number of bits.
    """
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    if len(packed) != -(-number // 8):
        raise DataError(f"{len(packed)} bytes of right and wrong for {number} questions")
    return np.unpackbits(packed)[:number].astype(bool)


def _digest(questions: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(questions, sort_keys=True).encode()).hexdigest()[:16]


def write_result(folder: Path, content: Mapping[str, Any], questions: Mapping[str, Any]) -> Path:
    """Writes a result file, and the file of questions if it is the first.

    Raises:
        DataError: The existing results are about other questions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / QUESTIONS_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if _digest(found) != content["questions_sha256"]:
            raise DataError(f"{path}: earlier results are about other questions; delete {folder}")
    else:
        write_atomically(path, json.dumps(questions, ensure_ascii=False) + "\n")
    result = folder / f"{run_name(content['setting'], content['seed'])}.json"
    write_atomically(result, dumps(content))
    return result


def dumps(content: Mapping[str, Any]) -> str:
    """Returns JSON with a line for each language."""
    text = json.dumps(content, ensure_ascii=False, indent=1)
    for mapping in content["benchmarks"].values():
        for language in mapping["languages"].values():
            # one line is easier to read than thirty
            text = text.replace(_nested(language), json.dumps(language, ensure_ascii=False))
    return text + "\n"


def _nested(language: Mapping[str, Any]) -> str:
    lines = json.dumps(language, ensure_ascii=False, indent=1).split("\n")
    return "\n".join([lines[0], *("    " + line for line in lines[1:])])


def read_results(folder: Path, allow_none: bool = False) -> Results:
    """Reads a folder of result files.

    Args:
        folder: Folder that `lrm reproduce` writes.
        allow_none: Return empty results if the folder has no result files.

    Raises:
        DataError: There are no results, or their questions or steps differ.
    """
    path = folder / QUESTIONS_FILE
    files = [file for file in sorted(folder.glob("*.json")) if file.name != QUESTIONS_FILE]
    if allow_none and not path.is_file() and not files:
        return Results({}, {})
    if not path.is_file() or not files:
        raise DataError(
            f"{folder}: no results in it; expected {QUESTIONS_FILE} and <setting>.seed<k>.json, as "
            "`lrm reproduce` writes them"
        )
    questions = json.loads(path.read_text(encoding="utf-8"))
    digest = _digest(questions)
    runs: dict[tuple[str, int], Mapping[str, Any]] = {}
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT or content.get("questions_sha256") != digest:
            raise DataError(f"{file}: of another format, or about other questions than {path}")
        runs[content["setting"], content["seed"]] = content
    steps: dict[str, Any] = {}
    for (setting, seed), content in runs.items():
        if steps.setdefault(setting, content["steps"]) != content["steps"]:
            raise DataError(f"{folder}: {setting}, seed {seed} was trained for other steps")
    pictures = {name: tuple(about["pictures"]) for name, about in questions.items()}
    return Results(pictures, runs)
