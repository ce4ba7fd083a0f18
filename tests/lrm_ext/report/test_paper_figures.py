"""Figures 1, 4 and 6 from made-up runs: what is drawn, what is said, and what is refused."""

import json
import resource

import pytest
from answered_runs import WORDS, write_run
from matplotlib import colors, ft2font
from PIL import Image
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from llava.files import save_figure
from lrm_ext.cli import app
from lrm_ext.report.plots import languages_figure, ratio_figure, ratio_of
from lrm_ext.report.qualitative import (
    Examples,
    ModelAnswer,
    Said,
    Shown,
    choose_examples,
    drawable,
    examples_figure,
    examples_page,
    wrap,
)
from lrm_ext.report.settings import Setting, score_settings


def setting(label, *runs):
    return Setting(label, runs)


def texts_of(figure):
    """Every text that is drawn."""
    figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(lambda one: hasattr(one, "get_text"))]


@pytest.fixture
def runs(tmp_path):
    base = write_run(tmp_path / "base", {"en": 19, "cs": 10, "de": 12})
    write_run(base, {"zh": 5}, num_answered=8)
    return base, write_run(tmp_path / "full", {"en": 18, "cs": 16, "de": 14, "zh": 20})


@pytest.mark.parametrize("style", ["bars", "radar"])
def test_figure_1_names_languages_settings_and_the_unit(runs, style, tmp_path):
    settings = [setting("English only", runs[0]), setting("full", runs[1])]
    figure = languages_figure(score_settings(settings), style)
    texts = texts_of(figure)
    for expected in ("English", "Czech", "German", "Chinese", "English only", "full",
                     "toy: accuracy (%)"):  # fmt: skip
        assert expected in texts
    assert ("missing" in texts) == (style == "bars")
    save_figure(figure, tmp_path / "f.png")
    assert Image.open(tmp_path / "f.png").size[0] > 600


def test_bars_have_the_scores_heights_and_differ_without_colour(runs):
    settings = [setting("a", runs[1]), setting("b", runs[0])]
    (axes,) = languages_figure(score_settings(settings)).axes
    first, second = (axes.containers[i] for i in (0, 2))
    assert [bar.get_height() for bar in first] == [90, 80, 70, 100]
    assert [bar.get_height() for bar in second][:3] == [95, 50, 60]
    assert {bar.get_hatch() for bar in first} != {bar.get_hatch() for bar in second}
    with pytest.raises(ConfigError, match="bars or radar"):
        languages_figure([], "pie")
    with pytest.raises(ConfigError, match="at most"):
        languages_figure(score_settings([setting(label, runs[0]) for label in "abcdefg"]))


def test_figure_6_has_a_line_a_language_in_the_order_of_the_ratios(tmp_path):
    rights = {"100": 18, "0": 10, "40": 14}
    settings = [
        setting(ratio, write_run(tmp_path / ratio, {"en": 19, "cs": right, "de": right - 2}))
        for ratio, right in rights.items()
    ]
    (scored,) = score_settings(settings)
    figure = ratio_figure(scored)
    (axes,) = figure.axes
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert list(lines) == ["Czech", "German", "mean of 2 without English", "English"]
    assert lines["Czech"].get_xdata().tolist() == [0, 40, 100]
    assert lines["Czech"].get_ydata().tolist() == [50, 70, 90]
    assert lines["mean of 2 without English"].get_ydata().tolist() == [45, 65, 85]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_linewidth())
             for line in lines.values()}  # fmt: skip
    assert len(looks) == 4
    assert "non-English data, in percent of the English data" in texts_of(figure)
    assert all(colors.is_color_like(line.get_color()) for line in lines.values())


def test_ratios_are_read_from_labels():
    assert [ratio_of(label) for label in ("150", "40 %", "ratio-0")] == [150, 40, 0]
    for wrong in ("full", "1 of 2"):
        with pytest.raises(ConfigError, match="150=RUN"):
            ratio_of(wrong)


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (32, 24), (20 * number, 90, 160)).save(folder / f"{number}.jpg")
    return folder


def test_examples_are_those_where_one_model_is_right_and_the_other_not(tmp_path, benchmark):
    a = write_run(tmp_path / "a", {"en": 20, "cs": 20})
    b = write_run(tmp_path / "b", {"en": 20, "cs": 18})
    settings = [setting("a", a), setting("b", b)]
    examples = choose_examples(settings, benchmark, languages=("cs",), seed=1)
    assert {shown.question_id for shown in examples.shown[:2]} == {"18", "19"}
    assert len(examples.shown) == 3 and "(2 of 20 questions)" in examples.caption
    assert choose_examples(settings, benchmark, languages=("cs",), seed=1) == examples
    yes = next(shown for shown in examples.shown if shown.question_id == "18")
    assert [(one.label, one.said.text, one.said.english, one.correct) for one in yes.answers] == [
        ("a", "Ano", "Yes", True), ("b", "Ne", "No", False),
    ]  # fmt: skip
    assert (yes.question.text, yes.question.english) == ("cs 18?", "en 18?")
    assert yes.images == (benchmark / "9.jpg",)
    texts = texts_of(examples_figure(examples))
    for expected in ("Czech: cs 18?", "(English: en 18?)", "b (wrong): Ne", "a (right): Ano"):
        assert expected in texts
    page = examples_page(examples)
    assert page.count("<img") == 3 and "data:image/jpeg;base64," in page and "http:" not in page


def test_an_answer_that_is_not_in_the_table_has_no_translation(tmp_path, benchmark):
    run = write_run(tmp_path / "run", {"en": 20, "cs": 20})
    path = run / "predictions" / "toy.cs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"] = "<b>Nevim</b>"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = choose_examples([setting("run", run)], benchmark, languages=("cs",), ids=("0",))
    (answer,) = examples.shown[0].answers
    assert answer.said.english is None and not answer.correct
    assert "no translation in the table" in examples_page(examples)
    assert "<b>Nevim" not in examples_page(examples)
    with pytest.raises(DataError, match="not every run has answered 77"):
        choose_examples([setting("run", run)], benchmark, languages=("cs",), ids=("77",))
    with pytest.raises(ConfigError, match="in zh"):
        choose_examples([setting("run", run)], benchmark, languages=("zh",))


def test_letters_without_a_font_are_said_not_drawn_as_boxes(caplog, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert drawable("dům, дом", "cs") == "dům, дом"
    assert drawable("\U00012000", "zh") == "[no font here has its letters]"
    if hasattr(ft2font, "__libraqm_version__"):
        assert drawable("كلب (dog)؟", "ar") == "\u2068كلب (dog)؟\u2069", "apart from what is around"
    else:
        assert drawable("كلب", "ar") == "[matplotlib 3.11 or later is needed for its letters]"
    assert all(len(line) <= 34 for line in wrap(WORDS["zh"][0] * 100))
    assert wrap("ไม่" * 100)[0] == "ไม่" * 33  # a line of 66 letters, which have marks
    cuneiform = Said("\U00012000", None)
    answers = tuple(ModelAnswer(name, cuneiform, True) for name in ("a", "b"))
    examples_figure(Examples((Shown("1", "zh", (picture,), cuneiform, cuneiform, answers),), "c"))
    (record,) = caplog.records
    assert "Cuneiform" in record.getMessage() and "fonts-noto-core" in record.getMessage()


def test_the_commands_write_images(runs, tmp_path, benchmark):
    base, full = map(str, runs)
    for arguments in (["1", base, full], ["6", f"0={base}", f"100={full}"],
                      ["4", base, full, "--benchmark-dir", str(benchmark)]):  # fmt: skip
        out = tmp_path / f"f{arguments[0]}.png"
        result = CliRunner().invoke(app, ["figure", *arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert Image.open(out).size[1] > 200
    assert (tmp_path / "f4.html").is_file()
    with pytest.raises(ConfigError, match="1, 4, 5, 6"):
        CliRunner().invoke(app, ["figure", "2", base, "--out", "x.png"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=".svg"):
        CliRunner().invoke(app, ["figure", "1", base, "--out", "x.gif"], catch_exceptions=False)


def test_a_figure_that_cannot_be_drawn_or_written_leaves_no_file(tmp_path, monkeypatch):
    class Broken:
        def savefig(self, file, **options):
            file.write(b"half")
            raise RuntimeError("no glyph")

    with pytest.raises(RuntimeError, match="no glyph"):
        save_figure(Broken(), tmp_path / "f.png")
    monkeypatch.setattr(Broken, "savefig", lambda self, file, **options: file.write(b"x" * 200_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"f\.png"):
            save_figure(Broken(), tmp_path / "f.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_of_many_languages_bars_are_in_several_panels_and_lines_are_grey(runs, monkeypatch):
    monkeypatch.setattr("lrm_ext.report.plots.MAX_ROWS", 2)
    scored = score_settings([setting("50", runs[1]), setting("100", runs[0])])
    upper, lower = languages_figure(scored).axes
    assert [[t.get_text() for t in axes.get_xticklabels()] for axes in (upper, lower)] == [
        ["English", "Czech"], ["German", "Chinese"],
    ]  # fmt: skip
    assert [bar.get_height() for bar in lower.containers[0]] == [70, 100]
    figure = ratio_figure(scored[0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "English", "mean of 3 without English", "each of 3 languages",
    ]  # fmt: skip
    (axes,) = figure.axes
    assert sum(line.get_color() == "#999999" for line in axes.lines) >= 3
