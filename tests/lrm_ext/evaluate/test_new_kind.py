"""A benchmark with rules of its own is one `Kind`: nothing else knows of it."""

from functools import partial

import official_files as files

from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.kind import LOCAL, Kind, count_accuracy, judge_by, judge_locally, share
from lrm_ext.evaluate.kinds import KINDS
from lrm_ext.evaluate.official import Files, cell
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.evaluate.scoring import score_file


def read_table(source, rows):
    for where, row in rows:
        image = source.store.put(row["image"], where)
        question, answer = cell(row, "question", where), cell(row, "answer", where)
        yield source.item(cell(row, "index", where), image, question, answer, "yesno", category="a")


def parse(text):
    return {"1": "yes", "0": "no"}.get(text)


COUNTED = Kind(
    name="counted",
    title="Counted",
    headline="accuracy",
    maximum=100.0,
    answer_type="yesno",
    modes={"digits": partial(judge_by, parse), LOCAL: judge_locally},
    default_mode="digits",
    count=count_accuracy,
    details=lambda items, verdicts, mode: {"accuracy": share(v.correct for v in verdicts)},
    files=Files(read_table),
)


def test_a_kind_is_imported_asked_and_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "counted", COUNTED)
    content = {"bytes": files.picture(1), "path": None}
    rows = [{"index": n, "image": content, "question": f"{n}?", "answer": answer}
            for n, answer in enumerate(("yes", "no"))]  # fmt: skip
    source, out = files.write_parquet(tmp_path / "c.parquet", rows), tmp_path / "counted"
    items = import_benchmark("counted", source, out).items
    assert get_benchmark("counted", out).read("en") == list(items)

    def score(*texts, **options):
        rows = [{"question_id": str(n), "text": text} for n, text in enumerate(texts)]
        answers = files.write_lines(tmp_path / "answers.jsonl", rows)
        return score_file("counted", answers, data=out, **options)

    report = score("1", "?")
    assert (report.mode, report.headline, report.counts["unparsed"]) == ("digits", 50, 1)
    assert score("Yes.", "No", mode="local").details["accuracy"] == 1
