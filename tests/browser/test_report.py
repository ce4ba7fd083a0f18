"""The page of an evaluation in many languages, opened from a file."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "lrm_ext" / "report")
    from make_report import make_report

    from lrm_ext.languages import list_languages
    from lrm_ext.report.evaluation import write_report

    strangers = [f"q{chr(97 + i)}" for i in range(20)]
    report = make_report(tmp_path, languages=(*list_languages(), *strangers))
    opened = browser.new_page(viewport={"width": 390, "height": 800})
    opened.goto(write_report(report, tmp_path, tmp_path).as_uri())
    yield opened
    opened.close()


def test_the_filter_leaves_the_languages_that_it_finds(page):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # nothing but tables is wider than a phone
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    field, told = page.get_by_label("Languages"), page.locator(".filter output")
    bars, marks = page.locator(".chart [data-find]"), page.locator(".scatter [data-find]")
    total = bars.count()
    assert total == marks.count() > 20 and told.inner_text() == ""
    for typed in ("Čeština", "cestina"):
        field.fill(typed)
        assert told.inner_text() == f"1 of {total} languages"
        shown = page.locator(".chart [data-find]:not([hidden]) .label")
        assert [label.inner_text().split()[0] for label in shown.all()] == ["Czech"]
        assert page.locator(".chart [data-group]:not([hidden])").count() == 1
        assert page.locator("table tr[data-find]:visible").count() == 1
        assert page.locator(".scatter [data-find]:not([hidden])").count() == 1
        assert page.locator(".chart h3:visible").count() == 1
    field.fill("no such language")
    assert told.inner_text() == f"0 of {total} languages"
    field.fill("")
    assert page.locator("[data-find][hidden]").count() == 0 and told.inner_text() == ""
    assert not errors
