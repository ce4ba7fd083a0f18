import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import msgspec
import pytest
import requests
from rich.console import Console

from llava.errors import CheckpointError, ConfigError
from llava.serve.chat import PageError, PageText
from lrm_ext import demo
from lrm_ext.demo import Demo, DemoOptions, run_demo
from lrm_ext.languages.registry import PAPER_LANGUAGES, Review, get_language, list_languages

DETAILS = (
    '<details dir="ltr"><summary>Pitanje na engleskom</summary><div dir="ltr">{}</div></details>'
)
MODELS = Path(__file__).parents[1] / "golden" / "llava" / "model"
# Jobs that a shell starts in the background are born deaf to Ctrl-C; the demo here must hear it.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pathlib import Path; from lrm_ext.demo import DemoOptions, run_demo; "
    "run_demo(DemoOptions({model!r}, port={port}, log_dir=Path({log_dir!r})))"
)


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def parts_of(log_dir):
    """Process ids whose command line names this test's page, or that log to its folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"-m\0lrm_ext.demo" not in (entry / "cmdline").read_bytes():
                continue
            if os.readlink(entry / "fd" / "1").startswith(str(log_dir)):
                found.append(int(entry.name))
    return found


@pytest.fixture
def started(tmp_path):
    """Start a demo of a tiny random model as a user would; yield process, port, log folder."""
    port = demo.free_port()
    code = START.format(model=str(MODELS / "tiny-llava"), port=port, log_dir=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=(tmp_path / "out.txt").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: "Ctrl-C\n" in (tmp_path / "out.txt").read_text() or process.poll())
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        yield process, port, tmp_path
    finally:
        process.kill()
        process.wait()
        wait_for(lambda: not parts_of(tmp_path))


def test_demo_answers_and_ctrl_c_stops_it_cleanly(started):
    process, port, log_dir = started
    assert f"http://127.0.0.1:{port}" in (log_dir / "out.txt").read_text()
    config = requests.get(f"http://127.0.0.1:{port}/config", timeout=20).json()
    labels = [component["props"].get("label") for component in config["components"]]
    assert {"I ask in", "Answer in"} <= set(labels)
    assert len(parts_of(log_dir)) == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert parts_of(log_dir) == []
    for log in ("out.txt", "controller.log", "worker.log", "page.log"):
        assert "Traceback" not in (log_dir / log).read_text(), log
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_nothing_outlives_a_demo_that_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from lrm_ext.demo import Demo; "
        "Demo(Path(sys.argv[1])).start('controller', '--port', sys.argv[2]); time.sleep(60)"
    )
    port = str(demo.free_port())
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), port])
    try:
        wait_for(lambda: parts_of(tmp_path))
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not parts_of(tmp_path), 20)


def test_a_part_that_dies_is_named(tmp_path):
    parts = Demo(tmp_path)
    try:
        controller = parts.start("controller", "--port", str(demo.free_port()))
        parts.check_alive()
        controller.kill()
        with pytest.raises(ConfigError, match=r"the controller stopped \(exit status -9\)"):
            parts.wait_until(lambda: False, "the test", 20)
    finally:
        parts.stop()
    assert parts_of(tmp_path) == []


def test_a_worker_that_cannot_load_its_model_says_why(tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(MODELS / "tiny-llava", broken)
    (broken / "model.safetensors").unlink()
    parts = Demo(tmp_path)
    try:
        parts.start("worker", "--model-path", str(broken), "--port", str(demo.free_port()))
        with pytest.raises(ConfigError, match=r"status 2\): .*broken.*\n.*worker\.log"):
            parts.wait_until(lambda: False, "the test", 60)
    finally:
        parts.stop()


def test_all_lines_of_a_parts_last_error_are_shown(tmp_path):
    parts = Demo(tmp_path)
    code = "print('error: first\\nwas tried again\\nerror: 2 GiB are missing:\\n  use --load-4bit')"
    parts.parts[tmp_path / "worker.log"] = process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=(tmp_path / "worker.log").open("wb")
    )
    process.wait()
    message = r"status 0\): 2 GiB are missing:\n  use --load-4bit\nits log is"
    with pytest.raises(ConfigError, match=message):
        parts.check_alive()


def test_check_asks_one_question(tmp_path):
    output = io.StringIO()
    options = DemoOptions(
        str(MODELS / "tiny-llava"),
        port=demo.free_port(),
        api_port=demo.free_port(),
        log_dir=tmp_path,
        check=True,
    )
    run_demo(options, Console(file=output, width=1000))
    found = re.search(
        r"What can you do\? -> '(.+)'\nthe API answers '(.+)'\n", output.getvalue(), re.DOTALL
    )
    assert found is not None
    assert found[1] == found[2]
    assert parts_of(tmp_path) == []


def test_a_service_answers_in_place_of_a_model(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Demo, "start", lambda self, *flags: started.append(flags))
    options = DemoOptions("m", base_url="http://s/v1", compare_with="b", log_dir=tmp_path)
    demo.start_parts(Demo(tmp_path), options)
    roles = {flags[0]: dict(zip(flags[1::2], flags[2::2], strict=True)) for flags in started}
    assert list(roles) == ["controller", "service", "worker", "page"]
    assert roles["service"]["--base-url"] == "http://s/v1"
    assert roles["worker"]["--model-path"] == "b"
    for role, *flags in started[1:3]:  # they are flags of its module
        demo.import_module(f"llava.serve.{demo.ROLES[role]}").build_parser().parse_args(flags)
    with pytest.raises(ConfigError, match="no service with OpenAI's API answers"):
        demo.run_part("service", ["--port", str(demo.free_port()), "--base-url", "http://[::1]:1"])


def test_missing_model_and_taken_port_are_said_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        run_demo(DemoOptions(str(tmp_path / "none"), log_dir=tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = DemoOptions(str(MODELS / "tiny-llava"), port=port, log_dir=tmp_path)
        with pytest.raises(ConfigError, match=f"{port}.*--port"):
            run_demo(options)
        free = demo.free_port()
        for own, api, reason in ((free, port, f"{port}.*--api-port"), (free, free, f"both {free}")):
            options = DemoOptions("m", port=own, api_port=api, log_dir=tmp_path)
            with pytest.raises(ConfigError, match=reason):
                demo.check_ports(options)


def test_waiting_ends_with_a_word(tmp_path):
    with pytest.raises(ConfigError, match="loading the model took longer than 0 s"):
        Demo(tmp_path).wait_until(lambda: False, "loading the model", 0.0)


def test_roles_are_listed():
    with pytest.raises(SystemExit):
        demo.main(["nonsense"])


@pytest.mark.parametrize("answer_lang", ["", "hr"])
def test_no_instruction_for_the_same_language(answer_lang):
    assert demo.with_instruction("Što je to?", "hr", "bvqa", answer_lang) == "Što je to?"


def test_instruction_is_the_one_of_training():
    from lrm_ext.instructions import get_instruction

    ask = get_instruction("bvqa").ask
    for lang in list_languages()[1:]:
        assert demo.with_instruction("Q?", "en", "bvqa", lang) == ask("Q?", lang, "from_en")
        assert demo.with_instruction("Q?", lang, "bvqa", "en") == ask("Q?", lang, "to_en")


def test_unknown_language_lists_the_choices():
    with pytest.raises(ConfigError, match="en, cs"):
        demo.with_instruction("Q?", "en", "bvqa", "tlh")


def test_the_page_of_llava_says_the_same_in_english():
    english = demo.page_languages()["en"].texts
    own = PageText().texts
    assert {key: english[key] for key in own} == own


def test_languages_have_the_same_texts_and_the_same_places_in_them():
    languages = demo.page_languages()
    assert list(languages) == list(list_languages())
    values = {"length": 2000, "limit": 1200, "model": "MODEL-X", "days": 77}
    values |= {"mib": 333, "megapixels": 555, "seconds": 888}
    for code in list_languages():
        own = set(get_language(code).ui)
        assert own <= set(get_language("en").ui)  # what is missing stays English
        assert code not in PAPER_LANGUAGES or own == set(get_language("en").ui)
        for key in get_language("en").ui:
            places = [f"{value}" for value in values.values()]
            said = languages[code].say(key, **values)
            expected = languages["en"].say(key, **values)
            assert [p in said for p in places] == [p in expected for p in places], (code, key)


def test_the_page_notes_languages_that_no_reader_has_signed(monkeypatch):
    signed = Review(by="Ana Horvat", on=date(2026, 12, 31))

    def get(code):
        language = get_language(code)
        return msgspec.structs.replace(language, reviewed=signed) if code == "hr" else language

    monkeypatch.setattr(demo, "get_language", get)
    notes = {code: text.note for code, text in demo.page_languages().items()}
    assert notes["hr"] == ""
    assert notes["de"] == get_language("de").ui["not_reviewed"]
    assert notes["sw"] == "No native reader has reviewed the texts in this language yet."


def test_english_needs_no_pivot():
    with pytest.raises(PageError, match="pivot_needs_other"):
        demo.with_instruction("Q?", "en", "epvqa", "hr")


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("crvena", "crvena"),
        ("English: What colo\u258c", "English: What colo\u258c"),
        (
            "English: Is 1 < 2?\nOdgovor: da\u258c",
            DETAILS.format("Is 1 &lt; 2?") + "\n\nda\u258c",
        ),
        (
            "English: A?\nOdgovor:",
            DETAILS.format("A?") + "\n\n*(odgovor je prazan)*",
        ),
    ],
)
def test_the_translation_is_folded(reply, shown):
    text = demo.page_languages()["hr"]
    assert demo.show_reply(reply, text, "hr", "epvqa", "") == shown
    assert demo.show_reply(reply, text, "hr", "mvqa", "") == reply
