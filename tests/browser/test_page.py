"""What a person does on the page, in a browser."""

from __future__ import annotations

import json
from importlib import resources
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytestmark = pytest.mark.browser

PHONE = (360, 740)
QUESTION = "Kakva je boja pozadine?"


def ask(tab, question=QUESTION, picture=None):
    if picture is not None:
        tab.set_input_files("#picture input[type=file]", picture)
        tab.wait_for_selector("#picture img")
    tab.fill("#question textarea", question)
    tab.press("#question textarea", "Enter")


def wait_for_answer(tab, vote="#upvote"):
    tab.wait_for_selector(f"{vote}:not([disabled])")


def last_answer(tab, chatbot="#chatbot"):
    return tab.locator(f"{chatbot} [data-testid=bot]").last.inner_text().strip()


def choose(tab, field, option):
    tab.click(f"{field} input")
    tab.get_by_role("option", name=option, exact=True).click()


def wait_for_names(tab, names):
    """Wait until the conversations that are shown have these names above them."""
    tab.wait_for_function(
        """names => {
          const labels = [...document.querySelectorAll("#answers label.float")];
          const shown = labels.filter(label => label.offsetParent);
          return shown.map(label => label.innerText.trim()).join() === names.join();
        }""",
        arg=names,
    )


def button(tab, name):
    return tab.get_by_role("button", name=name, exact=True)


def serious_barriers(tab):
    """What axe-core calls serious or critical, by rule."""
    pytest.importorskip("axe_core_python", reason='no axe-core: pip install -e ".[browser]"')
    # a colour that is still changing has no contrast of its own
    tab.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    tab.wait_for_selector("#stop[disabled]")
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    tab.evaluate(axe)
    violations = tab.evaluate("axe.run(document)")["violations"]
    return {
        violation["id"]: [
            (node["html"][:200], node["failureSummary"]) for node in violation["nodes"]
        ]
        for violation in violations
        if violation["impact"] in {"serious", "critical"}
    }


def test_a_croatian_asks_about_a_picture(visit, red_picture, log_dir):
    tab = visit("hr-HR")
    tab.get_by_role("button", name="Pošalji").wait_for()
    assert tab.locator("#page-language input").input_value() == "hrvatski"
    tab.wait_for_function("document.querySelector('#ask-in input').value === 'hrvatski'")
    # read while it comes
    ask(tab, picture=red_picture)
    tab.wait_for_selector("#stop:not([disabled])")
    wait_for_answer(tab)
    assert last_answer(tab) == "Crvena."
    button(tab, "Sviđa mi se").click()
    tab.wait_for_selector("#upvote[disabled]")
    (log,) = log_dir.glob("*-conv.json")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [record["type"] for record in records[-2:]] == ["chat", "upvote"]
    assert records[-1]["model"] == "stub-a"


def test_several_pictures_in_one_question(visit, tmp_path, log_dir):
    colours = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}
    files = {name: tmp_path / f"{name}.png" for name in colours}
    for i, (name, path) in enumerate(files.items()):
        Image.new("RGB", (300 + 60 * i, 200), colours[name]).save(path)
    tab = visit("hr-HR")
    tab.get_by_text("Ispustite jednu ili više slika ovamo").wait_for()
    upload, shown = "#picture input[type=file]", "#picture .gallery-item img"
    tab.set_input_files(upload, [files["red"], files["green"]])
    tab.wait_for_function(f"document.querySelectorAll('{shown}').length === 2")
    assert not tab.get_by_text("Ispustite jednu ili više slika ovamo").is_visible()
    tab.set_input_files(upload, files["blue"])
    tab.wait_for_function(f"document.querySelectorAll('{shown}').length === 3")
    numbers = tab.evaluate(
        """() => [...document.querySelectorAll("#picture .gallery-item")]
          .map(each => getComputedStyle(each, "::after").content)"""
    )
    assert numbers == ["counter(picture)"] * 3
    tab.screenshot(path=tmp_path / "three.png")
    tab.locator("#picture .delete-button").nth(1).click()  # green
    tab.wait_for_function(f"document.querySelectorAll('{shown}').length === 2")
    assert serious_barriers(tab) == {}
    ask(tab, "Koja je crvena?")
    wait_for_answer(tab)
    tab.screenshot(path=tmp_path / "asked.png")
    assert tab.locator("#chatbot .message.user img").count() == 2
    assert tab.locator("#picture .gallery-item").count() == 0
    (log,) = log_dir.glob("*-conv.json")
    record = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    stored = [Image.open(next(log_dir.glob(f"*/*/{each}.jpg"))) for each in record["images"]]
    assert [image.size[0] for image in stored] == [300, 420]  # red and blue
    tab.set_input_files(upload, [files["red"]] * 5)
    tab.get_by_text("Najveći broj slika u jednom pitanju: 4.").wait_for()


def test_stop_regenerate_clear(visit):
    tab = visit(model="stub-slow")
    ask(tab)
    tab.wait_for_function(
        "document.querySelector('#chatbot [data-testid=bot]')?.innerText.includes('riba riba')"
    )
    button(tab, "Zaustavi").click()
    wait_for_answer(tab)
    stopped = last_answer(tab)
    assert set(stopped.split()) <= {"riba", "rib", "ri", "r"}
    assert len(stopped) < 400
    button(tab, "Ponovno izradi").click()
    tab.wait_for_selector("#stop:not([disabled])")
    tab.wait_for_selector("#chatbot [data-testid=bot]")
    button(tab, "Zaustavi").click()
    wait_for_answer(tab)
    button(tab, "Očisti").click()
    tab.wait_for_function("!document.querySelector('#chatbot [data-testid=bot]')")
    assert tab.locator("#regenerate").is_disabled()


def test_switching_the_language_keeps_the_conversation(visit):
    tab = visit()
    tab.locator("#page-language").get_by_text("još nije pregledao izvorni govornik").wait_for()
    ask(tab)
    wait_for_answer(tab)
    choose(tab, "#page-language", "Deutsch")
    tab.get_by_role("button", name="Senden").wait_for()
    assert tab.evaluate("document.documentElement.lang") == "de"
    tab.locator("#page-language").get_by_text("noch nicht muttersprachlich geprüft").wait_for()
    assert tab.get_by_label("Ihre Frage").count() == 1
    assert last_answer(tab) == "Crvena."
    tab.press("#question textarea", "Enter")
    tab.get_by_text("Geben Sie zuerst eine Frage ein.").wait_for()


@pytest.mark.parametrize(
    ("locale", "send"),
    [("en-US", "Send"), ("cs", "Odeslat"), ("fr-CA", "Envoyer"), ("it", "Invia")]
    + [("ro", "Trimite"), ("ru", "Отправить"), ("es-MX", "Enviar"), ("zh-CN", "发送")],
)
def test_the_browser_chooses_the_language(visit, locale, send):
    tab = visit(locale)
    tab.get_by_role("button", name=send, exact=True).wait_for()


def test_two_models_side_by_side(visit, red_picture):
    tab = visit()
    wait_for_names(tab, ["Razgovor"])
    tab.get_by_label("Usporedi dva modela").check()
    tab.wait_for_selector("#second-chatbot")
    wait_for_names(tab, ["stub-a", "stub-b"])
    ask(tab, picture=red_picture)
    wait_for_answer(tab)
    wait_for_answer(tab, "#second-upvote")
    assert last_answer(tab) == "Crvena."
    assert last_answer(tab, "#second-chatbot") == "Plava."
    ask(tab, "A boja objekta?")
    tab.wait_for_function(
        "document.querySelectorAll('#second-chatbot [data-testid=bot]').length === 2"
    )
    wait_for_answer(tab, "#second-upvote")
    wait_for_answer(tab)
    choose(tab, "#second-model", "stub-slow")
    wait_for_names(tab, ["stub-a", "stub-slow"])
    choose(tab, "#page-language", "Deutsch")
    tab.get_by_role("button", name="Senden").wait_for()
    wait_for_names(tab, ["stub-a", "stub-slow"])
    tab.get_by_label("Zwei Modelle vergleichen").uncheck()
    tab.wait_for_selector("#second-chatbot", state="hidden")
    wait_for_names(tab, ["Gespräch"])


def test_a_model_with_its_own_chat_format(visit, red_picture):
    tab = visit()
    ask(tab, picture=red_picture)
    wait_for_answer(tab)
    assert last_answer(tab) == "Crvena."
    choose(tab, "#model", "stub-chat")
    ask(tab, "A oblik?")
    tab.wait_for_function("document.querySelectorAll('#chatbot [data-testid=bot]').length === 2")
    wait_for_answer(tab)
    assert last_answer(tab) == "Kvadrat."


def test_only_images_that_the_page_takes_are_offered(visit, tmp_path):
    tab = visit()
    offered = tab.locator("#picture input[type=file]").first.get_attribute("accept")
    assert offered == "image/png,image/jpeg,image/webp,image/gif"
    other = tmp_path / "other.bmp"
    Image.new("RGB", (30, 20)).save(other)
    tab.set_input_files("#picture input[type=file]", other)
    tab.get_by_text("Ova se slika ne može upotrijebiti.").wait_for()
    assert tab.locator("#picture img").count() == 0


def test_the_pivots_translation_is_folded(visit):
    tab = visit(model="stub-pivot")
    choose(tab, "#way", "preko engleskog")
    ask(tab)
    wait_for_answer(tab)
    folded = tab.locator("#chatbot details")
    assert not folded.evaluate("element => element.open")
    assert last_answer(tab).endswith("crvena")
    # summary is reached and opened with the keyboard
    folded.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert "What color is the background?" in folded.inner_text()
    assert "Pitanje na engleskom" in folded.inner_text()


def test_another_answer_language_is_asked_for(visit):
    tab = visit()
    choose(tab, "#way", "na drugom jeziku")
    tab.wait_for_selector("#answer-in")
    choose(tab, "#answer-in", "Deutsch")
    ask(tab)
    wait_for_answer(tab)
    asked = tab.locator("#chatbot [data-testid=user]").inner_text()
    assert asked.strip() == QUESTION + "\nOdgovorite na njemačkom."


def test_examples_keep_the_pages_language(visit):
    tab = visit()
    tab.get_by_role("button", name="Pošalji").wait_for()
    tab.click("#examples tbody tr >> nth=1")
    tab.wait_for_selector("#picture img")
    assert tab.input_value("#question textarea") == "Nalazi li se na slici krevet?"
    assert tab.get_by_label("Vaše pitanje").count() == 1
    choose(tab, "#page-language", "Deutsch")
    tab.get_by_text("Ist auf dem Bild ein Bett zu sehen?").wait_for()
    tab.click("#examples tbody tr >> nth=0")
    tab.wait_for_function(
        "document.querySelector('#question textarea').value"
        " === 'Ist auf dem Bild eine Axt zu sehen?'"
    )


@pytest.mark.parametrize("size", [(1280, 900), PHONE])
@pytest.mark.parametrize(
    ("locale", "way"),
    [
        ("fr", "en passant par l'anglais"),
        ("de", "in einer anderen Sprache"),
        ("ru", "через английский"),
    ],
)
def test_choices_end_before_the_arrow(visit, locale, way, size):
    tab = visit(locale, size=size)
    choose(tab, "#way", way)
    tab.wait_for_function("way => document.querySelector('#way input').value === way", arg=way)
    assert tab.evaluate(
        """() => {
          const field = document.querySelector("#way input");
          const arrow = document.querySelector("#way .icon-wrap");
          return field.scrollWidth <= field.clientWidth
            && field.getBoundingClientRect().right <= arrow.getBoundingClientRect().left;
        }"""
    )


def test_a_phone_shows_picture_question_answer_examples(visit):
    tab = visit(size=PHONE)
    tab.get_by_role("button", name="Pošalji").wait_for()

    def boxes():
        parts = ("#picture", "#ask", "#answers", "#examples")
        return [tab.locator(part).bounding_box() for part in parts]

    def gaps():
        found = boxes()
        ends = [box["y"] + box["height"] for box in found]
        return [box["y"] - end for box, end in zip(found[1:], ends[:-1], strict=True)]

    assert all(0 <= gap < 40 for gap in gaps())
    assert boxes()[2]["height"] < 150  # nothing is said yet
    assert tab.locator("#chatbot .placeholder").is_visible()
    ask(tab)
    wait_for_answer(tab)
    assert tab.locator("#chatbot [data-testid=bot]").last.is_visible()
    assert all(gap >= 0 for gap in gaps())


@pytest.mark.parametrize("locale", ["ru", "hr", "de"])
def test_no_word_is_cut_on_a_phone(visit, locale):
    tab = visit(locale, size=PHONE)
    ask(tab)
    wait_for_answer(tab)
    cut = tab.evaluate(
        """() => [...document.querySelectorAll("#send, .buttons button")]
          .filter(button => button.offsetParent && button.scrollWidth > button.clientWidth)
          .map(button => button.innerText)"""
    )
    assert cut == []


def test_errors_are_in_the_users_language(visit):
    tab = visit(model="stub-broken")
    ask(tab)
    tab.wait_for_selector("#regenerate:not([disabled])")
    assert "Pogreška pri dohvaćanju odgovora" in last_answer(tab)
    assert "(error_code: 1)" in last_answer(tab)
    assert tab.locator("#upvote").is_disabled()


def test_a_small_window_opens_at_the_top_ready_for_a_question(visit):
    tab = visit(size=(1280, 640))
    tab.wait_for_function("document.activeElement.matches('#question textarea')")
    tab.wait_for_timeout(500)
    assert tab.evaluate("scrollY") == 0


def test_it_works_with_the_keyboard_alone(visit):
    tab = visit()
    tab.focus("#question textarea")
    tab.keyboard.type(QUESTION)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "send"
    tab.keyboard.press("Enter")
    wait_for_answer(tab)
    reached = set()
    tab.focus("#question textarea")
    for _ in range(4):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    assert {"send", "regenerate", "clear"} <= reached


def test_nothing_is_asked_of_another_server(visit, red_picture):
    tab = visit()
    ask(tab, picture=red_picture)
    wait_for_answer(tab)
    urls = [urlsplit(url) for url in tab.requested]
    assert urls
    assert {url.hostname for url in urls if url.scheme not in {"data", "blob"}} == {"127.0.0.1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), PHONE])
def test_no_serious_barrier(visit, red_picture, size, scheme):
    tab = visit(size=size, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    ask(tab, picture=red_picture)
    wait_for_answer(tab)
    tab.get_by_label("Usporedi dva modela").check()
    tab.wait_for_selector("#second-chatbot")
    ask(tab, picture=red_picture)
    wait_for_answer(tab, "#second-upvote")
    wait_for_answer(tab)
    assert serious_barriers(tab) == {}
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]


RTL = "ar-EG"
RTL_QUESTION = "هل في الصورة سرير (bed)؟"


@pytest.mark.parametrize("size", [(1280, 900), PHONE])
def test_rtl_the_page_is_mirrored(visit, red_picture, size, tmp_path):
    tab = visit(RTL, size=size, lang=RTL)
    tab.get_by_role("button", name="إرسال").wait_for()
    assert tab.evaluate("document.documentElement.dir") == "rtl"
    ask(tab, RTL_QUESTION, red_picture)
    wait_for_answer(tab)
    tab.click("#parameters button")
    tab.wait_for_selector("#parameters input[type=range]")
    tab.screenshot(path=tmp_path / "page.png", full_page=True)

    def middle(selector):
        box = tab.locator(selector).first.bounding_box()
        return box["x"] + box["width"] / 2

    page = size[0] / 2
    assert middle("#chatbot label.float") > page
    assert middle("#chatbot .message.user") < middle("#chatbot .message.bot")
    assert middle("#way .icon-wrap") < middle("#way input")
    if size != PHONE:
        assert middle("#left") > page > middle("#right")
        assert middle("#send") < middle("#question") < page
        assert middle("#title h1") > page > middle("#page-language")
    for field in ("#question textarea", "#model input", "#parameters input[type=range]"):
        style = f"getComputedStyle(document.querySelector('{field}')).direction"
        assert tab.evaluate(style) == "rtl", field
    assert tab.locator("#chatbot .message-buttons button:visible").count() == 1  # copy
    assert serious_barriers(tab) == {}
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]


DIRECTIONS = """
() => [...document.querySelectorAll("#chatbot [data-testid=user], #chatbot [data-testid=bot]")]
  .filter(said => said.innerText.trim()).map(said => getComputedStyle(said).direction)
"""


@pytest.mark.parametrize(("locale", "page"), [(RTL, "rtl"), ("hr", "ltr")])
def test_rtl_messages_run_in_their_own_direction(visit, locale, page):
    tab = visit(locale, model="stub-hebrew", lang=locale)
    assert tab.evaluate("document.documentElement.dir") == page
    ask(tab, "What is it?")
    wait_for_answer(tab)
    assert tab.evaluate(DIRECTIONS) == ["ltr", "rtl"]
    places = tab.evaluate(
        """() => {
          const starts = [...document.querySelectorAll("#chatbot [data-testid=bot] :is(p, li)")];
          return starts.map(each => {
            const range = document.createRange();
            range.selectNodeContents(each);
            const text = range.getBoundingClientRect(), box = each.getBoundingClientRect();
            return text.left - box.left < box.right - text.right ? "left" : "right";
          });
        }"""
    )
    # a paragraph begins on its own side, a point of a list beside its mark
    assert places == ["right", "left", "right", "right"]
    tab.fill("#question textarea", RTL_QUESTION)
    typed = "getComputedStyle(document.querySelector('#question textarea')).direction"
    assert tab.evaluate(typed) == "rtl"


def test_rtl_the_pivots_translation_keeps_its_direction(visit):
    tab = visit(model="stub-pivot")
    choose(tab, "#page-language", "العربية (مصر)")
    tab.get_by_role("button", name="إرسال").wait_for()
    assert tab.evaluate("document.documentElement.dir") == "rtl"
    choose(tab, "#ask-in", "hrvatski")
    choose(tab, "#way", "عبر الإنجليزية")
    ask(tab)
    wait_for_answer(tab)
    tab.locator("#chatbot summary").click()
    directions = """
    () => ["summary", "details div"].map(
      part => getComputedStyle(document.querySelector("#chatbot " + part)).direction)
    """
    assert tab.evaluate(directions) == ["rtl", "ltr"]
    assert tab.evaluate(DIRECTIONS) == ["ltr", "ltr"]
    choose(tab, "#page-language", "hrvatski")
    button(tab, "Pošalji").wait_for()
    assert tab.evaluate("document.documentElement.dir") == "ltr"
