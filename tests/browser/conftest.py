"""A browser, and a page whose models say what the test needs.

Everything is on the loopback: controller, one worker for each stub model, the page as `lrm demo`
starts it. Without Chromium or Playwright the tests are skipped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 60_000
LANGUAGES = Path(__file__).parent / "languages"  # one that is written from right to left
PIVOT = "English: What color is the background?\nOdgovor: crvena"
# the chat template of a tokenizer, as config.json has it
CHAT_FORMAT = {
    "system": "Odgovaraj na hrvatskom.",
    "roles": ["user", "assistant"],
    "sep_style": "MPT",
    "sep": "<|im_end|>",
    "sep2": None,
    "version": "chat_template",
    "chat_template": {
        "source": (
            Path(__file__).parents[1] / "golden" / "llava" / "chat_templates" / "qwen_3.jinja"
        ).read_text(encoding="utf-8"),
        "special_tokens": {},
        "bos": "",
    },
}
# Name of each model, what it says, and how long it takes for each byte.
MODELS = {
    "stub-a": {"answer": "Crvena.", "delay_s": 0.05},
    "stub-chat": {"answer": "Kvadrat.<|im_end|>\n", "conversation": CHAT_FORMAT},
    "stub-b": {"answer": "Plava.", "delay_s": 0.05},
    "stub-hebrew": {"answer": "הכלב (dog) רץ.\n\nIt runs.\n\n- אדום\n- blue sky"},
    "stub-broken": {"answer": "ab", "error": RuntimeError("burns")},
    "stub-pivot": {"answer": PIVOT},
    "stub-slow": {"answer": "riba " * 100, "delay_s": 0.1},
}


def load_stubs():
    """The stub model and the servers of `tests/llava/serve`, whose conftest is not a package."""
    path = Path(__file__).parents[1] / "llava" / "serve" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serve_stubs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_stubs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason='no Playwright: pip install -e ".[browser]"'
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def page_address(browser, log_dir):
    """The address of a page with all of `MODELS`."""
    stubs = load_stubs()
    from llava.serve import gradio_web_server
    from llava.serve.chat import PageSettings
    from llava.serve.controller import Controller, create_app
    from llava.serve.engine import Engine
    from llava.serve.model_worker import ModelWorker
    from llava.serve.model_worker import create_app as create_worker_app
    from lrm_ext.demo import answer_language_control, page_languages
    from lrm_ext.languages.registry import FOLDER_VARIABLE, reload_languages

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.callback(reload_languages)
        patch.setenv(FOLDER_VARIABLE, str(LANGUAGES))
        reload_languages()
        known = Controller("shortest_queue")
        controller = stack.enter_context(stubs.running(create_app(known), stubs.free_port()))
        for name, options in MODELS.items():
            engine = Engine(
                stubs.ByteTokenizer(), stubs.StubModel(**options), stubs.stub_processor, name
            )
            port = stubs.free_port()
            worker = ModelWorker(
                controller,
                f"http://127.0.0.1:{port}",
                "test",
                False,
                "",
                None,
                None,
                False,
                False,
                "cpu",
                engine=engine,
            )
            stack.enter_context(stubs.running(create_worker_app(worker), port))
            worker.start()
            stack.callback(worker.close)
        deadline = time.monotonic() + 30
        while len(known.list_models()) < len(MODELS):
            assert time.monotonic() < deadline, "not all workers have registered"
            time.sleep(0.05)
        settings = PageSettings(
            controller,
            "reload",
            log_dir=log_dir,
            control=answer_language_control(),
            languages=page_languages(),
        )
        demo = gradio_web_server.build_demo(False, settings=settings, title="LRM-LLaVA")
        _, url, _ = demo.queue(api_open=False).launch(
            server_name="127.0.0.1",
            prevent_thread_lock=True,
            **gradio_web_server.launch_options(settings),
        )
        stack.callback(demo.close, verbose=False)
        yield url


@pytest.fixture
def visit(browser, page_address):
    """Open the page as a browser of some language, size and colour scheme does."""
    contexts = []

    def open_page(locale="hr", model="stub-a", size=(1280, 900), scheme="light", lang=None):
        context = browser.new_context(
            locale=locale,
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
        )
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        tab = context.new_page()
        tab.requested = []
        tab.on("request", lambda request: tab.requested.append(request.url))
        tab.goto(f"{page_address}?model={model}")
        tab.wait_for_selector("#send")
        tab.wait_for_function(
            "lang => document.documentElement.lang === lang",
            arg=lang or locale.split("-")[0],
        )
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def red_picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (300, 200), (200, 30, 30)).save(path)
    return path
