"""Turn answers to MMBench into a file for its evaluation server.

In: the benchmark's TSV and `<result-dir>/<experiment>.jsonl`. Out:
`<upload-dir>/<experiment>.xlsx`, the TSV without what the server knows, with a column `prediction`.
Usage:
python scripts/convert_mmbench_for_submission.py --annotation-file T.tsv --result-dir R
    --upload-dir U --experiment E
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from llava.errors import ConfigError, run_script
from llava.eval.records import answers_by_id, field, read_tsv, refuse_missing
from llava.files import writing

log = logging.getLogger(__name__)

DROPPED_COLUMNS = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6
MAX_CELL_CHARS = 32767
"""Excel's limit."""


def convert(annotation_file: str, result_dir: str, upload_dir: str, experiment: str) -> Path:
    """Convert an experiment's answers; return the file that was written.

    Raises:
        DataError: a file is not as it must be, or a row has no answer.
    """
    rows = read_tsv(annotation_file)
    source = Path(result_dir) / f"{experiment}.jsonl"
    answers = {str(index): text for index, text in answers_by_id(source).items()}
    indices = [field(row, "index", where) for where, row in rows]
    missing = [index for index in indices if index not in answers]
    refuse_missing("rows have no answer", missing, f"complete {source}")
    columns = [name for name in rows[0][1] if name not in DROPPED_COLUMNS]
    table = []
    for index, (_, row) in zip(indices, rows, strict=True):
        cells: list[str | int] = [row[name] for name in columns]
        cells[columns.index("index")] = int(index) if index.isdecimal() else index
        cells.insert(PREDICTION_COLUMN, answers[index])
        table.append(cells)
    header = list(columns)
    header.insert(PREDICTION_COLUMN, "prediction")
    target = Path(upload_dir) / f"{experiment}.xlsx"
    write_xlsx(target, [header, *table])
    return target


def write_xlsx(path: Path, rows: Sequence[Sequence[str | int]]) -> None:
    """Writes a sheet in which a text that begins with `=` is no formula.

    Characters that a cell cannot hold are left out, and texts are cut at Excel's limit with a
    warning: the server takes no other format.

    Raises:
        ConfigError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise ConfigError(
            f"{path} is written with openpyxl: pip install 'lrm-llava[excel]'"
        ) from error
    book = Workbook()
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(row, 1):
            if value == "":
                continue
            cell = book.active.cell(number, column)
            if isinstance(value, str):
                text = ILLEGAL_CHARACTERS_RE.sub("", value)
                if len(text) > MAX_CELL_CHARS:
                    log.warning(
                        "cell %s: cut from %d to %d characters",
                        cell.coordinate,
                        len(text),
                        MAX_CELL_CHARS,
                    )
                cell.value, cell.data_type = text[:MAX_CELL_CHARS], "s"
            else:
                cell.value = value
    with writing(path) as partial:
        book.save(partial)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert answers for MMBench's server.")
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-dir", required=True)
    parser.add_argument("--upload-dir", required=True)
    parser.add_argument("--experiment", required=True)
    run_script(
        lambda args: convert(
            args.annotation_file, args.result_dir, args.upload_dir, args.experiment
        ),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
