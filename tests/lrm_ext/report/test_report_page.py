"""The page and the tables of an invented evaluation."""

import dataclasses
import io
import re

import pytest
from html_page import Page
from make_report import make_report
from rich.console import Console

from llava.errors import DataError
from lrm_ext.evaluate.report import EvalReport, ExampleAnswer, Headline
from lrm_ext.report.evaluation import print_report, write_report
from lrm_ext.report.render import LabelledPoint, labelled_scatter


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "mini" / "eval"


def render(folder, **options):
    report = make_report(folder, **options)
    return write_report(report, folder, folder.parent).read_text(encoding="utf-8")


def test_page_is_well_formed_and_asks_for_nothing_outside(folder):
    html = render(folder)
    page = Page(html)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert len(sources) == 2 and all(source.startswith("data:image/png;") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    assert "prefers-color-scheme" in html and "$" not in html


def test_page_says_the_figures_in_words(folder):
    page = Page(render(folder))
    assert "98.0\u00a0% in English and 88.0\u00a0% on average over nine other" in page.text
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    croatian = next(label for label in labels if label.startswith("Croatian"))
    assert croatian == (
        "Croatian: 90.0 percent right, 95 % interval 87.3 to 92.2, without the image 50.0, "
        "commonest answer 50.0"
    )
    assert "wrong, expected: pas" in page.text
    assert "Is there a <b> in the picture?" in page.text
    assert "Not signed by a native reader: en, cs, de, fr, hr, it, ro, ru, es, zh (lrm" in page.text


def test_page_without_blind_run_training_or_english(folder):
    page = Page(render(folder, blind=None, languages=("hr",)))
    assert "without the image" not in page.text and "Training" not in page.text
    assert "98.0\u00a0% in Croatian" in page.text


def test_texts_run_in_the_direction_of_their_language(folder):
    report = make_report(folder)
    (benchmark,) = report.benchmarks
    arabic = ExampleAnswer("ar", "ما هذا؟", "قطة", "كلب", False)
    odd = ExampleAnswer("ar_x", "What?", "a", "a", True)
    example = dataclasses.replace(
        benchmark.examples[0], answers=(*benchmark.examples[0].answers, arabic, odd)
    )
    benchmark = dataclasses.replace(benchmark, examples=(example,))
    report = dataclasses.replace(report, benchmarks=(benchmark,))
    html = write_report(report, folder, folder.parent).read_text(encoding="utf-8")
    for text in (arabic.question, arabic.answer, arabic.expected):
        assert f'lang="ar" dir="rtl">{text}<' in html
    assert 'lang="hr" dir="ltr">mačka<' in html
    assert 'lang="ar_x" dir="auto">What?<' in html


def test_page_shows_an_example_whose_image_is_gone(folder, caplog):
    report = make_report(folder)
    (folder / "examples" / "scenes-1.png").unlink()
    write_report(report, folder, folder.parent)
    assert "without the image" in caplog.text


def test_report_survives_its_file(folder):
    report = make_report(folder)
    report.write(folder)
    assert EvalReport.read(folder) == report
    before = write_report(report, folder, folder.parent).read_bytes()
    assert write_report(EvalReport.read(folder), folder, folder.parent).read_bytes() == before


def test_report_file_must_be_there_and_whole(folder):
    with pytest.raises(DataError, match="`lrm eval --model ...` makes it"):
        EvalReport.read(folder)
    path = make_report(folder).write(folder)
    text = path.read_text()
    path.write_text(text.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(DataError, match="format_version is 9"):
        EvalReport.read(folder)
    path.write_text(text[:-20])
    with pytest.raises(DataError, match="not a report"):
        EvalReport.read(folder)


def printed(report, width):
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_the_terminal(folder, width):
    text = printed(make_report(folder), width)
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    row = next(line for line in text.splitlines() if "Croatian" in line)
    assert row.split() == "Croatian 90.0 87.3-92.2 50.0 50.0 87.0 84.0 81.0 78.0".split()
    told = " ".join(text.split())
    assert "not signed by a native reader: en, cs, de, fr, hr, it, ro, ru, es, zh (lrm" in told
    mean = next(line for line in text.splitlines() if "mean of 9" in line)
    assert mean.split()[3] == "88.0"


def test_examples_show_answer_and_expected_answer(folder):
    text = printed(make_report(folder), 80)
    assert "some/1.png" in text and "some/2.png" in text
    row = next(line for line in text.splitlines() if line.startswith("hr"))
    assert row.split()[-2:] == ["mačka", "pas"]


def test_table_without_blind_run(folder):
    row = next(
        line
        for line in printed(make_report(folder, blind=None), 80).splitlines()
        if "Croatian" in line
    )
    assert row.split()[3] == "-"


def test_an_answer_cannot_steer_the_terminal(folder):
    report = make_report(folder)
    (benchmark,) = report.benchmarks
    answers = (dataclasses.replace(benchmark.examples[0].answers[0], answer="\x1b[2Jda\r"),)
    example = dataclasses.replace(benchmark.examples[0], answers=answers)
    benchmark = dataclasses.replace(benchmark, examples=(example,))
    text = printed(dataclasses.replace(report, benchmarks=(benchmark,)), 80)
    assert "\x1b" not in text and "\r" not in text and "[2Jda" in text


def test_the_page_shows_headlines_in_the_papers_unit(folder):
    assert "perception" not in render(folder)
    report = make_report(folder)
    (benchmark,) = report.benchmarks
    details = {
        "counts": {"answered": 2374, "questions": 2374, "unparsed": 7},
        "fidelity": {"in_language": 2300, "decided": 2360}, "num_categories": 10,
    }  # fmt: skip
    values = {"en": 1534.3, "cs": 1300.0, "de": 1400.0}
    languages = tuple(
        dataclasses.replace(
            result,
            headlines=(
                Headline("perception", "local", values[result.lang], 1200, 1600, "bootstrap", None,
                         details),
            ),
        )
        for result in benchmark.languages
        if result.lang in values
    )  # fmt: skip
    benchmark = dataclasses.replace(benchmark, languages=languages)
    report = dataclasses.replace(report, benchmarks=(benchmark,))
    page = write_report(report, folder, folder.parent).read_text(encoding="utf-8")
    assert "<b>1534.30</b>" in page and "2,374 of 2,374" in page and "2,300 of 2,360" in page
    assert "<td>mean of 2</td><td>local</td><td><b>1350.00</b></td>" in page


def with_fidelity(report, shares):
    """The report with other shares of answers in the language of the question."""
    (benchmark,) = report.benchmarks
    languages = tuple(
        dataclasses.replace(
            result,
            total=dataclasses.replace(result.total, fidelity=shares.get(result.lang, 1.0)),
        )
        for result in benchmark.languages
    )
    return dataclasses.replace(
        report, benchmarks=(dataclasses.replace(benchmark, languages=languages),)
    )


def test_low_fidelity_is_said_in_tables_and_page(folder):
    report = with_fidelity(make_report(folder), {"hr": 0.62, "zh": 0.899, "cs": 0.9, "de": None})
    page = Page(write_report(report, folder, folder.parent).read_text(encoding="utf-8"))
    console = Console(file=io.StringIO(), width=400)
    print_report(report, console)
    for text in (page.text, console.file.getvalue()):
        (said,) = re.findall(r"(?i)fidelity is below 90 % in ([^:]*):", text)
        assert sorted(said.split(", ")) == ["hr", "zh"]
    assert "idelity is below" not in Page(render(folder)).text


def test_character_error_rates_are_by_script_the_worst_first(folder):
    rates = {"hr": 0.1, "cs": 0.3, "ru": 1.25}
    (benchmark,) = (report := make_report(folder)).benchmarks
    languages = tuple(
        dataclasses.replace(result, character_errors=rates.get(result.lang))
        for result in benchmark.languages
    )
    benchmark = dataclasses.replace(benchmark, languages=languages)
    report = dataclasses.replace(report, benchmarks=(benchmark,))
    page = Page(write_report(report, folder, folder.parent).read_text(encoding="utf-8"))
    expected = "Cyrillic 125.0 % (ru 125.0); Latin 20.0 % (cs 30.0, hr 10.0)"
    for text in (page.text, " ".join(printed(report, 80).split())):
        assert f"haracter error rate of the text that was read: {expected}" in text
    assert "haracter error rate" not in printed(make_report(folder), 80)


# as many as ship, so that it does not matter whether all of them do already
FIFTY = tuple(
    "en cs de fr hr it ro ru es zh am ar bg bn da el fa fi fil ga he hi hu id ig ja jv ko lt mi mn "
    "ms ne nl no pl pt qu si sr su sv sw ta te th tr uk ur vi".split()
)
SCRIPTS = {"ar": "Arabic", "fa": "Arabic", "ur": "Arabic", "th": "Thai", "xx": "other"} | {
    code: "Cyrillic" for code in ("ru", "bg", "uk", "mn", "sr")
}


@pytest.fixture
def many(folder, monkeypatch):
    """Fifty languages and a stranger, each less right than the one before down to 30 %."""
    name = "lrm_ext.languages.grouping.script_name"
    monkeypatch.setattr(name, lambda code: SCRIPTS.get(code, "Latin"))
    (benchmark,) = make_report(folder, languages=(*FIFTY, "xx")).benchmarks
    languages = tuple(
        dataclasses.replace(
            one, headlines=(Headline("accuracy", "local", 100 * one.main.accuracy, 0, 1, "", None, {
                "counts": {"answered": 9, "questions": 9, "unparsed": 0},
                "fidelity": {"in_language": 9, "decided": 9}, "num_categories": 1,
            }),),
        )
        for one in benchmark.languages
    )  # fmt: skip
    benchmark = dataclasses.replace(benchmark, languages=languages)
    return dataclasses.replace(make_report(folder), benchmarks=(benchmark,))


@pytest.mark.parametrize("width", [80, 140])
def test_of_fifty_languages_the_worst_are_rows_and_the_rest_scripts(many, width):
    text = printed(many, width)
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= width
    for table in text.split("scenes: accuracy"):
        rows = [line for line in table.splitlines() if re.search(r"\d-\d|\d\.\.\d", line)]
        # English, the worst ten, three scripts, a script of one language, and the stranger
        assert len(rows) == 1 + 10 + 3 + 1 + 1, table
        assert rows[0].split()[0] == "English" and "Latin: 31" in table
    row = next(line for line in text.splitlines() if "Cyrillic: 4" in line)
    # Russian, Bulgarian, Mongolian, Ukrainian: Serbian is one of the worst ten
    assert row.split()[2:4] == ["56.5", "30.0..84.0"]
    words = " ".join(text.split())
    assert "153 in all; en 3, cs 3," in words and "and 41 more" in words
    assert "`lrm report RUN --all`" in words


def test_every_language_is_printed_on_request(many):
    console = Console(file=io.StringIO(), width=140)
    print_report(many, console, show_all=True)
    text = console.file.getvalue()
    (benchmark,) = many.benchmarks
    shown = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert {result.name.split()[0] for result in benchmark.languages} <= set(shown)
    assert "Cyrillic:" not in text and "more" not in text


def test_page_of_fifty_languages_groups_filters_and_maps(many, folder):
    html = write_report(with_fidelity(many, {"sw": 0.31, "th": None}), folder, folder.parent)
    html = html.read_text(encoding="utf-8")
    page = Page(html)
    assert "Cyrillic: 5, mean" in page.text and "Arabic: 3, mean" in page.text
    assert "Scripts of one language: 1" in page.text
    assert "Codes without a language file: 1" in page.text
    found = [value for tag, name, value in page.attributes if name == "data-find"]
    assert len(set(found)) == 51 and "ru russian русский cyrillic" in found
    # bars, both tables, and the map, which lacks the one without fidelity
    assert len(found) == 4 * 51 - 1
    assert "no answer is in any language (figures only): th" in page.text
    swahili = html.partition("31.0 in the language of the question</title>")[2].partition("</g>")[0]
    assert '<circle class="blind"' in swahili and ">sw</text>" in swahili
    assert page.text.count("Map of gaps") == 1 and '<label for="filter">' in html
    assert not re.search(r"https?://|@import|url\(|<link|src=\"(?!data:)", html)


def test_labels_of_a_map_do_not_cover_each_other():
    points = [LabelledPoint(f"l{i}", "", "", x=90 + i % 7, y=95 + i // 7 * 0.5) for i in range(40)]
    html = labelled_scatter(points, ("x", "y"), 90)
    number = r'"([-\d.]+)%?"'
    place = f'<svg x={number} y={number}>.*?class="name" x={number} y={number}'
    marks = re.findall(place, html)
    assert len(marks) == 40
    for width in (300, 750):
        at = [
            (width * float(x) / 100 + float(dx), 3 * float(y) + float(dy)) for x, y, dx, dy in marks
        ]
        for i, (x, y) in enumerate(at):
            for a, b in at[:i]:
                assert abs(x - a) > 15 or abs(y - b) > 11.5, (width, i)
