"""Make the README's picture of the demo: start it, ask about a picture, photograph the page.

In: a checkpoint. Out: a PNG. Needs `chromium` on the PATH, steered over its debugging pipe, so no
browser driver is needed.

    python scripts/screenshot.py --model runs/mini --out docs/images/demo.png
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("screenshot")

WIDTH_PX, HEIGHT_PX = 1280, 1000
QUESTIONS = ("What color is the background?", "Kakva je boja pozadine?")
TIMEOUT_S = 60
POLL_INTERVAL_S = 0.25

PICTURE_IS_SHOWN = """
[...document.querySelectorAll('#left img[src*="/file="]')].some(i => !i.closest('#examples'))
"""
CHOOSE_EXAMPLE = "document.querySelectorAll('#examples tbody tr, #examples .gallery-item')[%d]"
TYPE = """
(() => {
  const box = document.querySelector('#right textarea');
  box.value = %s;
  box.dispatchEvent(new Event('input', {bubbles: true}));
})()
"""
SEND = "[...document.querySelectorAll('#right button')].find(b => b.innerText.trim() === 'Send')"
# While an answer streams, only Stop can be pressed.
IS_DONE = """
document.querySelectorAll('#chatbot .bot.message, #chatbot [data-testid=bot]').length >= %d &&
[...document.querySelectorAll('#buttons button')].some(
  b => b.innerText.trim() === 'Regenerate' && !b.disabled)
"""


class Browser:
    """A headless Chromium with one page.

    Messages of the DevTools protocol go through two pipes, each ended by a zero byte.
    """

    def __init__(self, program: str, profile_dir: str) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def connect() -> None:
            # The protocol wants exactly these two numbers; above them first, so that neither
            # overwrites the other.
            os.dup2(os.dup(to_browser), 63)
            os.dup2(from_browser, 4)
            os.dup2(63, 3)

        self._process = subprocess.Popen(
            [
                program,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile_dir}"),
            ],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._num_sent = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        size = {"width": WIDTH_PX, "height": HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events in between are dropped."""
        self._num_sent += 1
        message: dict[str, Any] = {"id": self._num_sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                chunk = os.read(self._in, 1 << 20)
                if not chunk:
                    raise RuntimeError("chromium has ended")
                self._buffer += chunk
            text, self._buffer = self._buffer.split(b"\0", 1)
            reply = json.loads(text)
            if reply.get("id") == self._num_sent:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]

    def evaluate(self, script: str) -> Any:
        """Run JavaScript on the page and return its value."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{script}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def wait_until(self, script: str) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: It did not become true in time.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {TIMEOUT_S} s for: {script.strip()}")
            time.sleep(POLL_INTERVAL_S)

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(10)


@contextlib.contextmanager
def running_demo(model: str) -> Iterator[str]:
    """Run `lrm demo` on a free port and give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "lrm_ext.cli", "demo", "--model", model, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        # The demo says its address once the model is loaded and the page answers.
        if not any(address in line for line in process.stdout):
            raise SystemExit("the demo stopped; its error is above")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def photograph(browser: Browser, address: str, example: int) -> bytes:
    """Ask about an example picture and return the page as PNG bytes."""
    browser.call("Page.navigate", url=address)
    browser.wait_until(f"!!{CHOOSE_EXAMPLE % example} && !!{SEND}")
    # The list of models is filled a moment after the layout.
    browser.wait_until("!!(document.querySelector('#left input')?.value)")
    browser.evaluate(f"{CHOOSE_EXAMPLE % example}.click()")
    browser.wait_until(PICTURE_IS_SHOWN)
    for number, question in enumerate(QUESTIONS, start=1):
        browser.evaluate(TYPE % json.dumps(question))
        browser.evaluate(f"{SEND}.click()")
        browser.wait_until(IS_DONE % number)
        log.info("answered: %s", question)
    time.sleep(1)  # the page scrolls to the last answer
    return base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])


def main() -> None:
    """Read the command line, make the picture, write it."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    parser = argparse.ArgumentParser(description="Photograph the demo.")
    parser.add_argument("--model", default="runs/mini")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    parser.add_argument("--example", type=int, default=0, help="which example picture, from 0")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.error("chromium is not installed (apt install chromium)")
    with (
        running_demo(args.model) as address,
        tempfile.TemporaryDirectory(
            ignore_cleanup_errors=True  # the browser may still be writing
        ) as profile_dir,
    ):
        browser = Browser(program, profile_dir)
        try:
            picture = photograph(browser, address, args.example)
        finally:
            browser.close()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(picture)
    log.info("%s: %d KiB", args.out, len(picture) // 1024)


if __name__ == "__main__":
    main()
