"""Shows the answers of one or several runs, question by question, on a page.

Input: folders of answers. Output: one row a question with the answers of all runs, each judged as
`lrm eval` judges it, and a filter over them. Answers to other versions of a question are refused.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Final, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from llava.errors import ConfigError, DataError, UserError
from lrm_ext.evaluate.glossing import gloss
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import Benchmark, get_benchmark
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    answer_files,
    asked_benchmark,
    open_result,
    predictions_dir,
)
from lrm_ext.languages import in_language_order, language_name

log = logging.getLogger(__name__)
# right or wrong by the first run, or not all runs alike; "" for all
State = Literal["", "right", "wrong", "different"]


@dataclass(frozen=True)
class JudgedAnswer:
    """The answer of a run and its verdict.

    Attributes:
        text: The answer.
        is_right: Whether it counts as right.
        is_cut: It reached the length limit.
    """

    text: str
    is_right: bool
    is_cut: bool


@dataclass
class QuestionRow:
    """A question and its answers.

    Attributes:
        benchmark: Its benchmark.
        item: The question, with the category and the expected answer.
        answers: By run; a run that did not answer it is absent.
        prompt_in_english: What was asked in English, where a run was asked that, too.
    """

    benchmark: str
    item: Item
    answers: dict[str, JudgedAnswer] = field(default_factory=dict)
    prompt_in_english: str = ""

    def has(self, text: str) -> bool:
        """Tells whether a casefolded text occurs in the question, an option or an answer."""
        item, said = self.item, (answer.text for answer in self.answers.values())
        asked = (item.text, self.prompt_in_english, *item.options, item.answer)
        return any(text in t.casefold() for t in (*asked, item.question_id, item.category, *said))

    def is_in(self, state: State, run: str) -> bool:
        """Tells whether its answers are in a state; right and wrong are about one run."""
        if state == "different":
            return len({answer.is_right for answer in self.answers.values()}) > 1
        answer = self.answers.get(run)
        return not state or (answer is not None and answer.is_right == (state == "right"))


@dataclass(frozen=True)
class Runs:
    """All rows.

    Attributes:
        names: The runs, the first being the one that right and wrong are about.
        rows: Sorted by benchmark, language and place in the file.
        roots: Folder of each benchmark's images; those that are not at hand are absent.
        table: Translations of answers into English; see `gloss`.
    """

    names: tuple[str, ...]
    rows: tuple[QuestionRow, ...]
    roots: Mapping[str, Path]
    table: str | None

    def find(self, lang: str, benchmark: str, state: State, text: str) -> list[int]:
        """Returns the numbers of the rows that pass a filter; "" lets all pass.

        Args:
            lang: Code.
            benchmark: Name.
            state: What the runs' answers are.
            text: Must occur in the question or an answer, in any case.
        """
        text = text.strip().casefold()
        return [
            number
            for number, row in enumerate(self.rows)
            if lang in ("", row.item.lang)
            and benchmark in ("", row.benchmark)
            and row.is_in(state, self.names[0])
            and (not text or row.has(text))
        ]

    def images(self, number: int) -> list[Path | None]:
        """Returns the files of a row's images; None unless one lies in its benchmark's folder."""
        row = self.rows[number]
        root = self.roots.get(row.benchmark)
        found: list[Path | None] = []
        for image in row.item.images:
            path = None if root is None else (root / image).resolve()
            is_there = path and root and path.is_relative_to(root.resolve()) and path.is_file()
            found.append(path if is_there else None)
        return found

    def show(self, number: int) -> dict[str, Any]:
        """Returns a row as the page wants it."""
        row = self.rows[number]
        item = row.item
        in_english = partial(gloss, lang=item.lang, options=item.options, table=self.table)
        return {
            "number": number,
            "benchmark": row.benchmark,
            "lang": item.lang,
            "id": item.question_id,
            "category": item.category,
            "images": list(item.images),
            "is_text_only": item.image == (),
            "has_picture": [path is not None for path in self.images(number)],
            "prompt": item.text,
            "prompt_in_english": row.prompt_in_english,
            "gold": item.answer,
            "gold_in_english": in_english(item.answer),
            "options": list(item.options),
            "answers": [
                {
                    "run": name,
                    "text": answer.text,
                    "right": answer.is_right,
                    "cut": answer.is_cut,
                    "in_english": in_english(answer.text),
                }
                if (answer := row.answers.get(name))
                else {"run": name, "text": None}
                for name in self.names
            ],
        }


def load_runs(
    folders: Sequence[Path],
    benchmark_dir: Path | None = None,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    table: str | None = None,
) -> Runs:
    """Reads the answers of runs.

    Args:
        folders: Models' folders, or those of their results.
        benchmark_dir: Where benchmarks of your own are, for their images.
        benchmarks: Names; empty for all.
        languages: Codes; empty for all.
        table: Translations for the memory engine, beside the names that it knows.

    Raises:
        DataError: A folder does not exist or has no answers, or two runs answered different
            versions of a question.
    """
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise DataError(
            f"{', '.join(missing)}: no such folder; expected a model that `lrm eval` has asked, or "
            "its results (--out)"
        )
    names = _names(folders)
    rows: dict[tuple[str, str, str], QuestionRow] = {}
    versions: dict[tuple[str, str], str] = {}
    for name, folder in zip(names, folders, strict=True):
        for (benchmark, lang), path in answer_files(folder).items():
            is_wanted = not benchmarks or benchmark in benchmarks
            if is_wanted and (not languages or lang in languages):
                result = open_result(path, benchmark, lang)
                if result.is_read():
                    _add(rows, versions, name, result, path)
    if not rows:
        raise DataError(
            f"{', '.join(map(str, folders))}: no answers to {', '.join(benchmarks) or 'anything'} "
            f"in {', '.join(languages) or 'any language'}"
        )
    for (benchmark, lang, key), row in rows.items():
        if lang != ENGLISH and (english := rows.get((benchmark, ENGLISH, key))):
            row.prompt_in_english = english.item.text
    langs = in_language_order({lang for _, lang, _ in rows})
    ordered = sorted(rows.values(), key=lambda row: (row.benchmark, langs.index(row.item.lang)))
    roots = _roots(ordered, [predictions_dir(folder) for folder in folders], benchmark_dir)
    return Runs(names, tuple(ordered), roots, table)


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Returns the names of runs, as short as they can be told apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise ConfigError("a run is named twice; name each once")
    named = (tuple("/".join(path.parts[-n:]) for path in resolved) for n in itertools.count(1))
    return next(names for names in named if len(set(names)) == len(names))


def _add(
    rows: dict[tuple[str, str, str], QuestionRow],
    versions: dict[tuple[str, str], str],
    run: str,
    result: RunResult,
    path: Path,
) -> None:
    answered, benchmark, lang = result.answered, result.benchmark, result.lang
    version = versions.setdefault((benchmark, lang), answered.version)
    if version and answered.version and version != answered.version:
        raise DataError(
            f"{path}: answers to version {answered.version} of {benchmark} in {lang}; another run "
            f"answered version {version}. Show one of them"
        )
    right = {verdict.key: verdict.correct for verdict in result.score().verdicts}
    for item in answered.items:
        key = item.question_id
        row = rows.setdefault((benchmark, lang, key), QuestionRow(benchmark, item))
        if (row.item.text, row.item.answer) != (item.text, item.answer):
            raise DataError(
                f"{path}: question {key} was {row.item.text!r} in another run and is "
                f"{item.text!r} here; they answered different versions of {benchmark}"
            )
        is_right, is_cut = right.get(key, False), key in answered.cut_keys
        row.answers[run] = JudgedAnswer(answered.texts[key], is_right, is_cut)


def _roots(
    rows: Sequence[QuestionRow], runs: Sequence[Path], benchmark_dir: Path | None
) -> dict[str, Path]:
    """Returns the folders of images; a benchmark that is not at hand is shown without.

    Answers may be filed under the name of another benchmark, so the folder is the first that has
    an image of theirs.
    """
    images = {row.benchmark: row.item.images[0] for row in reversed(rows) if row.item.images}
    roots: dict[str, Path] = {}
    for name, image in images.items():
        for benchmark in _candidates(name, runs, benchmark_dir):
            if benchmark.image_path(image).is_file():
                roots[name] = benchmark.image_root
                break
        else:
            log.warning(
                "%s is shown without images: %s is in no folder that is known; name the "
                "benchmark's with --benchmark-dir", name, image,
            )  # fmt: skip
    return roots


def _candidates(name: str, runs: Sequence[Path], benchmark_dir: Path | None) -> Iterator[Benchmark]:
    """Yields the benchmarks that may have been asked, best first."""
    if benchmark_dir is not None:
        yield get_benchmark(name, benchmark_dir)
    for run in runs:
        try:
            benchmark = asked_benchmark(run, name)
        except UserError as error:
            log.warning("%s: %s", run, error)
            continue
        if benchmark is not None:
            yield benchmark


HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
PAGE_SIZE: Final = 24
_MAX_TEXT: Final = 200
_TYPES: Final = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".gif": "image/gif", ".bmp": "image/bmp",
}  # fmt: skip
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TEMPLATE: Final = Path(__file__).with_name("inspecting.html")


def make_app(runs: Runs) -> FastAPI:
    """Makes the application."""
    app = FastAPI(title="lrm inspect", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    langs = in_language_order({row.item.lang for row in runs.rows})
    about = {
        "runs": list(runs.names),
        "benchmarks": sorted({row.benchmark for row in runs.rows}),
        "languages": [[lang, language_name(lang)] for lang in langs],
    }

    @app.middleware("http")
    async def harden(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        # "<" would end the script that the data stands in
        data = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c")
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        body = template.substitute(nonce=nonce, about=data)
        return HTMLResponse(body, headers={"Content-Security-Policy": policy})

    @app.get("/rows")
    def rows(
        lang: str = "", benchmark: str = "", state: State = "", text: str = "", page: int = 0
    ) -> dict[str, Any]:
        numbers = runs.find(lang, benchmark, state, text[:_MAX_TEXT])
        num_pages = max(1, -(-len(numbers) // PAGE_SIZE))
        page = min(max(page, 0), num_pages - 1)
        shown = numbers[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        return {
            "rows": [runs.show(number) for number in shown],
            "page": page,
            "num_pages": num_pages,
            "num_found": len(numbers),
            "num_rows": len(runs.rows),
            "counts": _counts(runs, numbers),
        }

    @app.get("/picture/{number}/{place}")
    def image(number: int, place: int) -> FileResponse:
        images = runs.images(number) if 0 <= number < len(runs.rows) else []
        path = images[place] if 0 <= place < len(images) else None
        kind = _TYPES.get(path.suffix.lower()) if path is not None else None
        if path is None or kind is None:
            raise HTTPException(404, "no such image")
        return FileResponse(path, media_type=kind)

    return app


def _counts(runs: Runs, numbers: list[int]) -> list[dict[str, Any]]:
    """Counts the right and the answered ones of the rows found, for each run."""
    found = [item for number in numbers for item in runs.rows[number].answers.items()]
    answered = Counter(name for name, _ in found)
    right = Counter(name for name, answer in found if answer.is_right)
    return [{"run": n, "right": right[n], "answered": answered[n]} for n in runs.names]
