"""Make the README's pictures of the page: start the demo, use it, photograph it.

In: two checkpoints. Out: `demo-desktop.png`, `demo-phone.png` (360 pixels wide, dark, in Croatian)
and `demo-compare.png`. Needs Chromium on the PATH and the extra `browser`.

    python scripts/screenshot.py --model runs/mini --compare-with runs/mini/checkpoint-1800
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from llava.images import open_image

log = logging.getLogger("screenshot")

START_TIMEOUT_S = 300
TIMEOUT_MS = 60_000
POLL_INTERVAL_S = 0.25
SETTLE_MS = 800
NUM_COLORS = 128
FLAGS = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]


@contextlib.contextmanager
def running_demo(model: str, other: str) -> Iterator[str]:
    """Start `lrm demo` on a free port; yield its address; stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "lrm_ext.cli", "demo", "--model", model]
        command += ["--compare-with", other, "--port", str(port), "--log-dir", logs]
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            wait_for_page(demo, address)
            yield address
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait()


def wait_for_page(demo: subprocess.Popen[str], address: str) -> None:
    """Wait until the demo has said its address, which it does when all parts answer."""
    deadline = time.monotonic() + START_TIMEOUT_S
    assert demo.stdout is not None
    for line in demo.stdout:
        if address in line:
            requests.get(address, timeout=START_TIMEOUT_S).raise_for_status()
            return
        if time.monotonic() > deadline:
            break
    raise SystemExit("the demo did not start")


class Visit:
    """One user's page."""

    def __init__(self, browser: Any, address: str, size: tuple[int, int], **options: Any) -> None:
        width, height = size
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", **options
        )
        self._context.set_default_timeout(TIMEOUT_MS)
        self.tab = self._context.new_page()
        self.tab.goto(address)
        language = options["locale"].split("-")[0]
        self.tab.wait_for_function("lang => document.documentElement.lang === lang", arg=language)
        self.tab.wait_for_timeout(SETTLE_MS)

    def choose_example(self, index: int) -> None:
        """Take a built-in picture, with its question."""
        self.tab.click(f"#examples tbody tr >> nth={index}")
        self.tab.wait_for_selector("#picture img")

    def ask(self, question: str, votes: tuple[str, ...] = ("#upvote",)) -> None:
        """Ask, and wait for the answers."""
        self.tab.fill("#question textarea", question)
        self.tab.press("#question textarea", "Enter")
        self.tab.wait_for_selector("#stop:not([disabled])")
        for vote in votes:
            self.tab.wait_for_selector(f"{vote}:not([disabled])")

    def photograph(self, path: Path, full: bool = False) -> None:
        """Write what is seen, in few colours, so that the file is small."""
        self.tab.mouse.move(0, 0)
        self.tab.wait_for_timeout(SETTLE_MS)
        picture = open_image(self.tab.screenshot(full_page=full))
        picture.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        log.info("%s: %d KiB", path, path.stat().st_size // 1024)
        self._context.close()


def photograph_all(browser: Any, address: str, folder: Path) -> None:
    """Make the three pictures."""
    visit = Visit(browser, address, (1280, 960), locale="en-US", color_scheme="light")
    visit.choose_example(0)
    visit.ask("Is there an elephant in the picture?")
    visit.ask("What is the color of the background?")
    visit.photograph(folder / "demo-desktop.png")

    visit = Visit(browser, address, (360, 740), locale="hr-HR", color_scheme="dark")
    visit.choose_example(3)
    visit.ask("Nalazi li se na slici zmija?")
    visit.photograph(folder / "demo-phone.png", full=True)

    visit = Visit(browser, address, (1280, 960), locale="cs", color_scheme="light")
    visit.tab.check("#compare input")
    visit.tab.wait_for_selector("#second-chatbot")
    visit.choose_example(1)
    visit.ask("Je na obr\u00e1zku postel?", ("#upvote", "#second-upvote"))
    visit.photograph(folder / "demo-compare.png")


def main() -> None:
    """Read the command line and make the pictures."""
    from playwright.sync_api import sync_playwright

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    parser = argparse.ArgumentParser(description="Photograph the demo.")
    parser.add_argument("--model", default="runs/mini")
    parser.add_argument("--compare-with", default="runs/mini/checkpoint-1800")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.error("chromium is not installed (apt-get install chromium)")
    args.out.mkdir(parents=True, exist_ok=True)
    with running_demo(args.model, args.compare_with) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=FLAGS)
        photograph_all(browser, address, args.out)
        browser.close()


if __name__ == "__main__":
    main()
