"""Starts controller, worker, page and API, waits until they answer, and stops them together.

In: a checkpoint and ports. Out: a page, and perhaps an API, until Ctrl-C. Each part is a process of
its own, so that a worker that dies takes nothing with it; each leaves when this one does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import requests
from rich.console import Console

import llava
from llava.errors import ConfigError
from llava.serve import client
from llava.serve.check import find_problems
from llava.serve.model_path import check_model_path
from llava.serve.protocol import OK, READ_TIMEOUT_S
from llava.serve.templates import stop_string, template_of_worker
from llava.serve.web import check_port_is_free

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
POLL_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 8.0
START_TIMEOUT_S = 120.0
CHECK_QUESTION = "What can you do?"
# How many people are answered at the same time; the others wait.
CONCURRENCY = 16
WORKER_DRAIN_S = 2.0


@dataclass(frozen=True)
class DemoOptions:
    """What to start.

    Attributes:
        model: Checkpoint folder or Hub name.
        model_base: Base model of a LoRA or projector-only checkpoint.
        port: Port of the page.
        api_port: Port of the OpenAI-compatible API; None for no API.
        host: Address that page and API listen on; controller and worker stay on the loopback.
        device: Where the model runs.
        log_dir: Folder for the logs of all parts and for uploaded pictures.
        start_timeout_s: How long loading the model may take.
        check: Ask one question and stop.
    """

    model: str
    model_base: str | None = None
    port: int = 7860
    api_port: int | None = None
    host: str = LOOPBACK
    device: str = "cuda"
    log_dir: Path = Path("runs/demo")
    start_timeout_s: float = 900.0
    check: bool = False


@dataclass
class Child:
    """A running part of the demo."""

    role: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def check_alive(self) -> None:
        """Refuse to go on without this part.

        Raises:
            ConfigError: The process has ended; the text says why.
        """
        status = self.process.poll()
        if status is None:
            return
        raise ConfigError(
            f"the {self.role} stopped (exit status {status}): {self._cause()}\n"
            f"its log is {self.log_path}"
        )

    def _cause(self) -> str:
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1]


@dataclass
class Demo:
    """All parts of a running demo."""

    log_dir: Path
    children: list[Child] = field(default_factory=list)

    def start(self, role: str, *arguments: str) -> Child:
        """Start one part.

        Args:
            role: `controller`, `worker`, `page` or `api`.
            arguments: Its flags.

        Returns:
            The running part.
        """
        log_path = self.log_dir / f"{role}.log"
        # Found also when the packages are used from a folder that is not installed.
        root = str(Path(llava.__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "lrm_ext.serve.child", role, *arguments],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"},
                # Ctrl-C must reach this process alone, which then stops the parts in order.
                start_new_session=True,
            )
        child = Child(role, process, log_path)
        self.children.append(child)
        return child

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for a condition while all parts live.

        Raises:
            ConfigError: A part has ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not _succeeds(ready):
            self.check_alive()
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{what} took longer than {timeout_s:.0f} s; the logs are in {self.log_dir}; "
                    "--start-timeout gives more time"
                )
            time.sleep(POLL_INTERVAL_S)

    def check_alive(self) -> None:
        """Refuse to go on when a part has ended.

        Raises:
            ConfigError: It says which part, and why.
        """
        for child in self.children:
            child.check_alive()

    def stop(self) -> None:
        """End all parts, the last one started first."""
        for child in reversed(self.children):
            child.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in reversed(self.children):
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the %s did not stop in time and is killed", child.role)
                child.process.kill()
                child.process.wait()
            if child.process.stdin is not None:
                child.process.stdin.close()


def _succeeds(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except (requests.RequestException, ValueError, KeyError):
        return False


def free_port() -> int:
    """Return a port on the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does; put both handlers back in the end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt), signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])


def start_parts(demo: Demo, options: DemoOptions) -> str:
    """Start controller, worker, page and, if it is wanted, the API.

    Returns:
        The controller's address.
    """
    controller_port, worker_port = free_port(), free_port()
    controller = f"http://{LOOPBACK}:{controller_port}"
    demo.start("controller", "--host", LOOPBACK, "--port", str(controller_port))
    worker = [
        *("--host", LOOPBACK, "--port", str(worker_port)),
        *("--worker-address", f"http://{LOOPBACK}:{worker_port}"),
        *("--controller-address", controller, "--device", options.device),
        *("--model-path", options.model),
        *("--limit-model-concurrency", str(CONCURRENCY)),
        *("--drain-timeout", str(WORKER_DRAIN_S)),
    ]
    if options.model_base:
        worker += ["--model-base", options.model_base]
    demo.start("worker", *worker)
    demo.start(
        "page",
        *("--host", options.host, "--port", str(options.port), "--controller-url", controller),
        *("--model-list-mode", "reload", "--log-dir", str(options.log_dir)),
    )
    if options.api_port is not None:
        demo.start(
            "api",
            *("--host", options.host, "--port", str(options.api_port)),
            *("--controller-address", controller),
        )
    return controller


def wait_until_ready(demo: Demo, options: DemoOptions, controller: str) -> str:
    """Wait until the worker has registered and the page answers.

    Returns:
        The model's name.

    Raises:
        ConfigError: A part failed or took too long.
    """
    demo.wait_until(
        lambda: bool(client.get_model_list(controller)),
        "loading the model",
        options.start_timeout_s,
    )
    demo.wait_until(
        lambda: requests.get(page_address(options), timeout=5).ok,
        "starting the page",
        START_TIMEOUT_S,
    )
    if options.api_port is not None:
        demo.wait_until(
            lambda: requests.get(api_address(options) + "/health", timeout=5).ok,
            "starting the API",
            START_TIMEOUT_S,
        )
    problems = find_problems(controller)
    if problems:
        raise ConfigError("; ".join(problems))
    return client.get_model_list(controller)[0]


def page_address(options: DemoOptions) -> str:
    """Return the address to open in a browser on this machine."""
    return f"http://{_local_host(options)}:{options.port}"


def api_address(options: DemoOptions) -> str:
    """Return the address of the API on this machine, without `/v1`."""
    return f"http://{_local_host(options)}:{options.api_port}"


def _local_host(options: DemoOptions) -> str:
    return LOOPBACK if options.host in ("0.0.0.0", "::") else options.host


def ask_once(controller: str, model: str) -> str:
    """Ask the model one question without a picture.

    Returns:
        The answer.

    Raises:
        ConfigError: The worker reports an error.
    """
    address = client.get_worker_address(controller, model)
    conversation = template_of_worker(address, model)
    conversation.append_message(conversation.roles[0], CHECK_QUESTION)
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    text = prompt
    body = {
        "model": model,
        "prompt": prompt,
        "temperature": 0,
        "max_new_tokens": 16,
        "stop": stop_string(conversation),
    }
    for chunk in client.stream_generation(controller, body):
        if chunk["error_code"] != OK:
            raise ConfigError(f"the worker failed: {chunk.get('reason', chunk['text'])}")
        text = chunk["text"]
    return text[len(prompt) :].strip()


def ask_api(options: DemoOptions, model: str) -> str:
    """Ask the API the same question.

    Returns:
        The answer.

    Raises:
        ConfigError: It reports an error.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": CHECK_QUESTION}],
        "temperature": 0,
        "max_tokens": 16,
    }
    response = requests.post(
        api_address(options) + "/v1/chat/completions", json=body, timeout=READ_TIMEOUT_S
    )
    if not response.ok:
        raise ConfigError(f"the API failed: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])


def check_ports(options: DemoOptions) -> None:
    """Refuse ports that cannot be listened on, before the model is loaded.

    Raises:
        ConfigError: It names the port and the flag.
    """
    check_port_is_free(options.host, options.port)
    if options.api_port is None:
        return
    if options.api_port == options.port:
        raise ConfigError(f"--port and --api-port are both {options.port}; give two ports")
    check_port_is_free(options.host, options.api_port, "--api-port")


def run_demo(options: DemoOptions, console: Console | None = None) -> None:
    """Run the demo until Ctrl-C, or with `check` until one question is answered.

    Args:
        options: What to start.
        console: Where to say the address.

    Raises:
        CheckpointError: There is no such model folder.
        ConfigError: A port is taken, or a part stopped.
    """
    console = console or Console()
    check_model_path(options.model)
    check_ports(options)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    demo = Demo(options.log_dir)
    with _interrupted_by_sigterm():
        try:
            with console.status(f"loading {options.model} (Ctrl-C stops)"):
                controller = start_parts(demo, options)
                model = wait_until_ready(demo, options, controller)
            if options.check:
                console.print(f"{CHECK_QUESTION} -> {ask_once(controller, model)!r}")
                if options.api_port is not None:
                    console.print(f"the API answers {ask_api(options, model)!r}")
                return
            api = "" if options.api_port is None else f"API: {api_address(options)}/v1   "
            console.print(
                f"[bold green]{model}[/] answers at [bold]{page_address(options)}[/]\n"
                f"{api}logs: {options.log_dir}   stop: Ctrl-C"
            )
            while True:
                demo.check_alive()
                time.sleep(POLL_INTERVAL_S)
        except KeyboardInterrupt:
            console.print("\nstopping ...")
        finally:
            # A second Ctrl-C must not leave half of the parts behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            demo.stop()
