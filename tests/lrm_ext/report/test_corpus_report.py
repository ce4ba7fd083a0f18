"""`lrm corpus report`: the numbers of a corpus whose every text is known, and the page of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from html_page import Page
from PIL import Image
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.report.corpus_report import (
    MAX_SHOWN,
    CorpusStats,
    LanguageStats,
    corpus_stats,
    figures_of,
    render_corpus,
    visible,
)
from lrm_ext.translate.cache import Cache, CachedAnswer
from lrm_ext.translate.engines.base import Usage

NUM_ROWS = 200
EVIL = "<script>alert(1)</script> & \u202eabc"


def turns(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn("human", question), Turn("gpt", answer))


def text_of(i: int) -> CorpusText | None:
    """Czech: every tenth row is rejected, every twenty-fifth suspect, the last has no text."""
    said = turns(f"<image>\nOtázka {i}?", f"Odpověď {i}.")
    if i == 7:
        return CorpusText(said, "rejected", "tiny 1", "odd: seen once")
    if i % 10 == 0:
        reason = f"{'length' if i % 20 else 'numbers'}: {i} " + EVIL
        return CorpusText(said, "rejected", "tiny 1", reason)
    if i % 25 == 1:
        return CorpusText(said, "suspect", "tiny 1", "language: unsure")
    if i == NUM_ROWS - 1:
        return None
    return CorpusText(said, "ok", "tiny 1" if i % 2 else None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (300, 200), "teal").save(images / "0.png")
    with CorpusWriter(tmp_path / "corpus", ["cs", "hr"], image_root="../images") as writer:
        for i in range(NUM_ROWS):
            image = f"{i % 2}.png"  # 1.png is not there
            english = turns(f"<image>\nQuestion {i}?", EVIL + "x" * 2000)
            row = CorpusRow(f"r{i}", image, "made up", "vqa", i % 50 != 3, english)
            texts = {} if (text := text_of(i)) is None or not row.translatable else {"cs": text}
            writer.append(row, texts)
    return tmp_path / "corpus"


def report(corpus: Path, out: Path, *options: str) -> str:
    command = ["corpus", "report", str(corpus), "--out", str(out), *options]
    result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return out.read_text(encoding="utf-8")


def expected() -> Counter[str]:
    counts: Counter[str] = Counter()
    for i in range(NUM_ROWS):
        text = text_of(i)
        counts["english only" if i % 50 == 3 else text.status if text else "missing"] += 1
    return counts


def test_every_row_is_counted_once(corpus):
    czech, croatian = corpus_stats(Corpus.open(corpus)).languages
    assert +czech.statuses == expected() and czech.statuses.total() == NUM_ROWS
    for status in ("suspect", "rejected"):
        counts = [count for (one, _), count in czech.reasons.items() if one == status]
        assert sum(counts) == expected()[status]
    assert {reason for status, reason in czech.reasons if status == "rejected"} == {
        "length",
        "numbers",
        "odd",
    }
    assert sum(czech.engines.values()) == NUM_ROWS - 4 - 1
    assert czech.engines["people", "ok"] > 0 and czech.usage is None
    assert +croatian.statuses == {"missing": NUM_ROWS - 4, "english only": 4}
    assert not croatian.kept and not croatian.faulty


def test_examples_are_what_they_are_said_to_be(corpus):
    opened = Corpus.open(corpus)
    czech = corpus_stats(opened, num_examples=12).languages[0]
    assert len(czech.kept) == len(czech.faulty) == 12
    assert all(example.text.status == "ok" for example in czech.kept)
    assert all(example.text.status != "ok" for example in czech.faulty)
    # the reason that occurs once is among them
    reasons = Counter((example.text.reason or "").partition(":")[0] for example in czech.faulty)
    assert reasons["odd"] == 1 and min(reasons.values()) >= 1 and len(reasons) == 4
    for example in (*czech.kept, *czech.faulty):
        assert example.text == opened.text("cs", example.index) == text_of(example.index)
        assert example.row.id == f"r{example.index}"
    again = corpus_stats(opened, num_examples=12).languages[0]
    other = corpus_stats(opened, num_examples=12, seed=1).languages[0]
    assert (again.kept, again.faulty) == (czech.kept, czech.faulty)
    assert other.kept != czech.kept


def test_examples_come_from_the_whole_corpus(corpus):
    """Over many draws every kept row is seen, and about as often as any other."""
    opened = Corpus.open(corpus)
    drawn = Counter(
        example.index
        for seed in range(60)
        for example in corpus_stats(opened, num_examples=20, seed=seed).languages[0].kept
    )
    assert set(drawn) == set(map(int, opened.usable_rows("cs")))
    assert max(drawn.values()) < 5 * np.mean(list(drawn.values()))


def test_page_is_well_formed_and_asks_for_nothing_outside(corpus, tmp_path):
    html = report(corpus, tmp_path / "out" / "report.html", "--pictures")
    page = Page(html)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    assert "prefers-color-scheme" in html and "$" not in html
    assert "width=device-width" in html
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "no image: 1.png" in page.text
    without = report(corpus, tmp_path / "report.html")
    assert "<img" not in without and len(without) < len(html)
    assert without == report(corpus, tmp_path / "again.html")


def test_page_says_the_numbers_and_escapes_what_is_in_the_data(corpus, tmp_path):
    html = report(corpus, tmp_path / "report.html")
    page = Page(html)
    counts = expected()
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert labels[0] == (
        f"Czech: {counts['ok']} kept, {counts['suspect']} suspect, {counts['rejected']} rejected, "
        "4 stay English by rule, 1 no text"
    )
    assert EVIL not in page.text and "\u202e" not in html
    assert EVIL.replace("\u202e", "[U+202E]") in page.text
    assert f"... [{len(EVIL) + 2000:,} characters]" in page.text
    assert "numbers: 0" in page.text and "rejected: odd" in page.text
    assert "what it cost is not known" not in page.text  # people and an engine that nobody knows


def test_what_is_unseen_is_shown():
    assert visible("a\nb\tc \u200d") == "a\nb\tc \u200d"  # joiners belong to words
    assert visible("a\u200fb\x1b[2Jc\x00") == "a[U+200F]b[U+001B][2Jc[U+0000]"
    assert visible("y" * MAX_SHOWN) == "y" * MAX_SHOWN
    assert visible("कि" * (MAX_SHOWN + 1)).startswith("कि" * MAX_SHOWN + " ...")  # no torn letter


def translated(tmp_path: Path, *more: str) -> Path:
    """A corpus that `lrm translate` has made Croatian, so that it knows its engine."""
    with CorpusWriter(tmp_path / "made", []) as writer:
        for i, answer in enumerate(("Yes", "No", "Yes")):
            row = CorpusRow(str(i), None, None, None, True, turns("Really?", answer))
            writer.append(row, {})
    table = tmp_path / "hr.tsv"
    table.write_text("Really?\tStvarno?\n", encoding="utf-8")
    command = ["translate", str(tmp_path / "made"), "--to", "hr", "--engine", "memory"]
    command += ["--option", f"table={table}", *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return tmp_path / "made"


def test_costs_are_those_of_the_cache(tmp_path):
    class Engine:
        name, version, options = "memory", "1", {}

    corpus = translated(tmp_path)
    cache = Cache(tmp_path / "translation-cache.sqlite")
    cache.put({b"k": CachedAnswer("x", None)}, Engine(), "hr", Usage(3, 1000, 2000, 0.25))  # type: ignore[arg-type]
    cache.put({}, Engine(), "hr", Usage(1, 10, 20, 0.5))  # type: ignore[arg-type]
    cache.put({}, Engine(), "cs", Usage(9, 9, 9, 9.0))  # type: ignore[arg-type]
    cache.close()
    (croatian,) = corpus_stats(Corpus.open(corpus), cache=cache.path).languages
    assert croatian.usage == {"memory": Usage(4, 1010, 2020, 0.75)}
    assert set(croatian.licences) == {"memory"}
    page = Page(report(corpus, tmp_path / "report.html"))  # finds the cache beside the corpus
    assert "1,010" in page.text and "0.7500" in page.text and "9.0000" not in page.text
    with pytest.raises(ConfigError, match=r"--cache .*none\.sqlite: there is no such file"):
        report(corpus, tmp_path / "r.html", "--cache", str(tmp_path / "none.sqlite"))


def test_a_translation_has_figures(tmp_path):
    (croatian,) = corpus_stats(Corpus.open(translated(tmp_path))).languages
    assert croatian.figures and all(len(v) == 3 for v in croatian.figures.values())


def test_without_a_cache_costs_are_not_known(tmp_path):
    corpus = translated(tmp_path, "--cache", str(tmp_path / "elsewhere" / "c.sqlite"))
    assert "what it cost is not known" in Page(report(corpus, tmp_path / "report.html")).text


def test_figures_by_name():
    kind = pa.map_(pa.string(), pa.float32())
    rows = [[("a", 1.0), ("b", 2.0)], None, [], [("b", 3.0)], [("a", 4.0)]]
    found = figures_of(pa.array(rows, kind))
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [1.0, 4.0],
        "b": [2.0, 3.0],
    }
    sliced = figures_of(pa.array(rows, kind).slice(2))
    assert {name: values.tolist() for name, values in sliced.items()} == {"a": [4.0], "b": [3.0]}
    assert figures_of(pa.array([None, []], kind)) == {}


def test_figures_are_drawn_with_their_limit(corpus):
    stats = corpus_stats(Corpus.open(corpus), num_examples=0)
    stats.languages[0].figures = {
        "length": np.linspace(0, 2, 101, dtype=np.float32),
        "mojibake": np.zeros(101, np.float32),
        "of my own": np.linspace(-1, 1, 101, dtype=np.float32),
    }
    page = Page(render_corpus(stats, command="x"))
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    (length,) = (label for label in labels if "median 1," in label)
    assert length.startswith("Czech: median 1, half between 0.5 and 1.5, nine of ten between 0.1")
    assert re.search(r"between 0\.1 and 1\.9; limit [\d.]+$", length)
    (own,) = (label for label in labels if "median 0," in label)
    assert "limit" not in own and "between -0.9 and 0.9" in own
    assert "The same in at least nine of ten rows: mojibake (0)" in page.text


def test_a_corpus_of_english_only(tmp_path):
    with CorpusWriter(tmp_path / "c", []) as writer:
        writer.append(CorpusRow("a", None, None, None, True, turns("Hi", "Ho")), {})
    text = Page(report(tmp_path / "c", tmp_path / "report.html")).text
    assert "There is no text in another language yet" in text and "1 rows are text only" in text


def test_many_languages_are_grouped_by_script_and_found_by_a_filter(corpus):
    opened = Corpus.open(corpus)
    stats = corpus_stats(opened)
    assert "data-find" not in render_corpus(stats, command="")
    languages = []
    for i, lang in enumerate(["hr", "cs", "ru", *(f"q{chr(97 + i)}" for i in range(20))]):
        statuses = Counter({"ok": 40 - i, "rejected": i})
        reasons = Counter({("rejected", f"reason{i % 3}"): i}) if i else Counter()
        name = {"hr": "Croatian", "cs": "Czech", "ru": "Russian"}.get(lang, lang)
        languages.append(LanguageStats(lang, name, statuses, reasons))
    many = CorpusStats(opened, stats.summary, languages, None, 0)
    html = render_corpus(many, command="")
    page = Page(html)
    headings = ["Latin: 2", "Scripts of one language: 1", "Codes without a language file: 20"]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    # least kept first
    assert page.text.index("Czech") < page.text.index("Croatian")
    found = [value for _, name, value in page.attributes if name == "data-find"]
    # a bar, the counts, the reasons and the examples of each
    assert len(found) == 4 * 23 and len(set(found)) == 23 and "hr croatian latin" in found
    reasons = html.partition("Why texts were not kept")[2]
    assert '<th scope="col">rejected: reason2</th>' in reasons.partition("</thead>")[0]
    russian = reasons.partition('data-find="ru russian cyrillic"')[2].partition("</tr>")[0]
    # two of its texts were rejected, both for the reason that is last because it is the rarest
    assert russian == "><td>Russian</td><td>0</td><td>0</td><td>2</td>"
