"""Starts controller, worker, page and API, waits until they answer, and stops them together.

In: a checkpoint and ports. Out: a page and optionally an API, until Ctrl-C. Each part is a separate
process (`python -m lrm_ext.demo ROLE`), so that a worker that fails leaves the others running. Each
process exits when its stdin closes, so that none outlives a demo that was killed.

Through `llava.serve.chat.PromptControl`, the page offers the paper's three instructions. A
question gets the instruction in its own language, in the place where training puts it.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from rich.console import Console

import llava
from llava.errors import ConfigError, run_command
from llava.files import get_model_name_from_path
from llava.serve import protocol
from llava.serve.check import check_model_path, check_port_is_free, find_problems
from llava.serve.protocol import OK, READ_TIMEOUT_S
from lrm_ext.instructions.registry import get_instruction, insert_instruction
from lrm_ext.languages.registry import (
    ENGLISH,
    answer_request,
    get_language,
    list_languages,
)

if TYPE_CHECKING:
    import gradio as gr

    from llava.serve.chat import PageText, PromptControl

log = logging.getLogger(__name__)

CHECK_QUESTION = "What can you do?"

DIRECT, PIVOT, BILINGUAL = "mvqa", "epvqa", "bvqa"
_WAYS = {DIRECT: "way_direct", PIVOT: "way_pivot", BILINGUAL: "way_bilingual"}
_CURSOR = "\u258c"

LOOPBACK = "127.0.0.1"
POLL_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 8.0
START_TIMEOUT_S = 120.0
# Requests that a worker answers at the same time; the others wait.
CONCURRENCY = 16
WORKER_DRAIN_S = 2.0


def ask_once(controller: str, model: str) -> str:
    """Asks the model one question without an image.

    Returns:
        The answer.

    Raises:
        ConfigError: The worker reports an error.
    """
    address = protocol.get_worker_address(controller, model)
    body = protocol.text_request(address, model, CHECK_QUESTION, temperature=0, max_new_tokens=16)
    text = body["prompt"]
    for chunk in protocol.stream_generation(controller, body):
        if chunk["error_code"] != OK:
            raise ConfigError(f"the worker failed: {chunk.get('reason', chunk['text'])}")
        text = chunk["text"]
    return text[len(body["prompt"]) :].strip()


def ask_api(address: str, model: str) -> str:
    """Asks the API the same question.

    Returns:
        The answer.

    Raises:
        ConfigError: The API reports an error.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": CHECK_QUESTION}],
        "temperature": 0,
        "max_tokens": 16,
    }
    response = requests.post(address + "/v1/chat/completions", json=body, timeout=READ_TIMEOUT_S)
    if not response.ok:
        raise ConfigError(f"the API failed: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])


def page_languages() -> Mapping[str, PageText]:
    """Returns the texts of the page in all languages; missing ones are English.

    Its note tells that no native reader has signed a language's file.
    """
    from llava.serve.chat import PageText

    english = get_language(ENGLISH).ui
    pages = {}
    for code in list_languages():
        language = get_language(code)
        own = {"example_question": language.fixed_prompts["image_what"]}
        texts = {**english, **language.ui, **own}
        note = "" if language.reviewed else texts["not_reviewed"]
        pages[code] = PageText(code, language.native_name, texts, language.direction, note)
    return pages


def with_instruction(text: str, question_lang: str, way: str, answer_lang: str) -> str:
    """Converts a question into the prompt of an instruction.

    Args:
        text: The user's question.
        question_lang: Language code of the question.
        way: Name of the instruction.
        answer_lang: For BVQA, the language code of the answer. Any two languages that name each
            other are allowed here; "" or the language of the question adds nothing.

    Returns:
        The question with the instruction in the same language, in the place where training puts it.

    Raises:
        PageError: EP-VQA is chosen for a question in English.
        ConfigError: A language or an instruction is unknown.
    """
    from llava.serve.chat import PageError

    if way == PIVOT and question_lang == ENGLISH:
        raise PageError("pivot_needs_other")
    if way != BILINGUAL:
        return get_instruction(way).ask(text, question_lang)
    if answer_lang in ("", question_lang):
        return text
    request = answer_request(question_lang, answer_lang)
    return insert_instruction(text, request, get_language(question_lang).format_prompts)


def show_reply(reply: str, text: PageText, question_lang: str, way: str, _: str) -> str:
    """Returns a reply as Markdown, with the translation of EP-VQA folded.

    A reply without a translation, or with an unfinished one, is shown as it is.
    """
    if way != PIVOT:
        return reply
    parsed = get_instruction(PIVOT).parse(reply.removesuffix(_CURSOR), question_lang)
    if parsed.translation is None or (not parsed.answer and reply.endswith(_CURSOR)):
        return reply
    cursor = _CURSOR if reply.endswith(_CURSOR) else ""
    answer = parsed.answer or f"*{text.say('empty_answer')}*"
    # the two may run in other directions than the answer
    return (
        f'<details dir="{text.direction}"><summary>{html.escape(text.say("translation"))}</summary>'
        f'<div dir="ltr">{html.escape(parsed.translation)}</div></details>\n\n{answer}{cursor}'
    )


def answer_language_control() -> PromptControl:
    """Returns the fields for question language, instruction and answer language."""
    from llava.serve.chat import PromptControl

    return PromptControl(build=_build, apply=with_instruction, relabel=_relabel, show=show_reply)


def _build() -> Sequence[gr.components.Component]:
    import gradio as gr

    text = page_languages()[ENGLISH]
    names = [(get_language(code).native_name, code) for code in list_languages()]
    # one below the other: in half a column, the words of some languages would be cut
    question = gr.Dropdown(names, value=ENGLISH, label=text.say("ask_in"), elem_id="ask-in")
    way = gr.Dropdown(_ways(text), value=DIRECT, label=text.say("way"), elem_id="way")
    answer = gr.Dropdown(
        names, value=ENGLISH, label=text.say("answer_in"), visible=False, elem_id="answer-in"
    )
    way.change(
        lambda chosen: gr.update(visible=chosen == BILINGUAL), way, answer, show_progress="hidden"
    )
    return question, way, answer


def _ways(text: PageText) -> list[tuple[str, str]]:
    return [(text.say(key), way) for way, key in _WAYS.items()]


def _relabel(text: PageText) -> list[Any]:
    """Translates the fields; the language of the page becomes that of the question."""
    import gradio as gr

    return [
        gr.update(label=text.say("ask_in"), value=text.code),
        gr.update(label=text.say("way"), choices=_ways(text)),
        gr.update(label=text.say("answer_in")),
    ]


@dataclass(frozen=True)
class DemoOptions:
    """Options of a demo.

    Attributes:
        model: Checkpoint folder or Hub name.
        model_base: Base model of a LoRA or projector-only checkpoint.
        base_url: Address of a service with OpenAI's API, whose model answers in place of `model`.
        compare_with: Another checkpoint to compare with; None for none.
        port: Port of the page.
        api_port: Port of the OpenAI-compatible API; None for no API.
        host: Address of page and API; controller and workers listen on the loopback only.
        device: Device of the model.
        log_dir: Folder for the logs of all parts and for uploaded images.
        keep_days: Days after which uploaded images are deleted; 0 keeps them for ever.
        start_timeout_s: Seconds that loading the model may take.
        check: Ask one question and stop.
    """

    model: str
    model_base: str | None = None
    base_url: str | None = None
    compare_with: str | None = None
    port: int = 7860
    api_port: int | None = None
    host: str = LOOPBACK
    device: str = "cuda"
    log_dir: Path = Path("runs/demo")
    keep_days: float = 30.0
    start_timeout_s: float = 900.0
    check: bool = False

    def address(self, port: int | None) -> str:
        """Returns the URL of a port on this machine."""
        return f"http://{LOOPBACK if self.host in ('0.0.0.0', '::') else self.host}:{port}"


@dataclass
class Demo:
    """All parts of a running demo: the process of each, by the path of its log."""

    log_dir: Path
    parts: dict[Path, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts one part.

        Args:
            role: A key of `ROLES`.
            arguments: Flags of the part.

        Returns:
            Its process.
        """
        log_path = self.log_dir / f"{role}.log"
        if log_path in self.parts:
            log_path = self.log_dir / f"{role}-2.log"
        # The packages may be used from a folder without being installed.
        root = str(Path(llava.__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with log_path.open("wb") as log_file:
            self.parts[log_path] = subprocess.Popen(
                [sys.executable, "-m", "lrm_ext.demo", role, *arguments],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"},
                # Ctrl-C must reach only this process, which then stops the parts in order.
                start_new_session=True,
            )
        return self.parts[log_path]

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Waits for a condition while all parts run.

        Raises:
            ConfigError: A part has stopped, or the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(requests.RequestException, ValueError, KeyError):
                if ready():
                    return
            self.check_alive()
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{what} took longer than {timeout_s:.0f} s; the logs are in {self.log_dir}; "
                    "--start-timeout gives more time"
                )
            time.sleep(POLL_INTERVAL_S)

    def check_alive(self) -> None:
        """Checks that all parts run.

        Raises:
            ConfigError: A part has stopped; the message names it and its last error.
        """
        for log_path, process in self.parts.items():
            status = process.poll()
            if status is not None:
                text = log_path.read_text(encoding="utf-8", errors="replace").strip()
                errors = re.split(r"^error: ", text, flags=re.MULTILINE)[1:]  # to the log's end
                cause = (errors or text.splitlines() or ["it said nothing"])[-1]
                raise ConfigError(
                    f"the {log_path.stem} stopped (exit status {status}): {cause}\n"
                    f"its log is {log_path}"
                )

    def stop(self) -> None:
        """Stops all parts in reverse order of their start."""
        started = list(reversed(self.parts.items()))
        for _, process in started:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for log_path, process in started:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the %s did not stop in time and is killed", log_path.stem)
                process.kill()
            process.communicate()  # waits, and closes its stdin


def free_port() -> int:
    """Returns a port on the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def start_parts(demo: Demo, options: DemoOptions) -> str:
    """Starts controller, a worker for each model, page and optionally the API.

    Returns:
        The address of the controller.
    """
    controller_port = free_port()
    controller = f"http://{LOOPBACK}:{controller_port}"
    demo.start("controller", "--host", LOOPBACK, "--port", str(controller_port))
    local = ("--device", options.device, "--model-path")
    base = ("--model-base", options.model_base) if options.model_base else ()
    models: list[tuple[str, ...]] = [("worker", *local, options.model, *base)]
    if options.base_url:
        models = [("service", "--base-url", options.base_url)]
    if options.compare_with:
        models.append(("worker", *local, options.compare_with))
    for role, *flags in models:
        port = free_port()
        demo.start(
            role,
            *("--host", LOOPBACK, "--port", str(port)),
            *("--worker-address", f"http://{LOOPBACK}:{port}"),
            *("--controller-address", controller),
            *("--limit-model-concurrency", str(CONCURRENCY)),
            *("--drain-timeout", str(WORKER_DRAIN_S)),
            *flags,
        )
    demo.start(
        "page",
        *("--host", options.host, "--port", str(options.port), "--controller-url", controller),
        *("--model-list-mode", "reload", "--log-dir", str(options.log_dir)),
        *("--keep-days", str(options.keep_days)),
    )
    if options.api_port is not None:
        demo.start(
            "api",
            *("--host", options.host, "--port", str(options.api_port)),
            *("--controller-address", controller),
        )
    return controller


def wait_until_ready(demo: Demo, options: DemoOptions, controller: str) -> str:
    """Waits until the workers have registered and page and API answer.

    Returns:
        The name of the model.

    Raises:
        ConfigError: A part failed or took too long.
    """
    num_models = 2 if options.compare_with else 1
    demo.wait_until(
        lambda: len(protocol.get_model_list(controller)) >= num_models,
        "loading the model",
        options.start_timeout_s,
    )
    demo.wait_until(
        lambda: requests.get(options.address(options.port), timeout=5).ok,
        "starting the page",
        START_TIMEOUT_S,
    )
    if options.api_port is not None:
        demo.wait_until(
            lambda: requests.get(options.address(options.api_port) + "/health", timeout=5).ok,
            "starting the API",
            START_TIMEOUT_S,
        )
    problems = find_problems(controller)
    if problems:
        raise ConfigError("; ".join(problems))
    return protocol.get_model_list(controller)[0]


def check_ports(options: DemoOptions) -> None:
    """Checks that the ports can be used, before the model is loaded.

    Raises:
        ConfigError: A port cannot be used; the message names it and its flag.
    """
    check_port_is_free(options.host, options.port)
    if options.api_port == options.port:
        raise ConfigError(f"--port and --api-port are both {options.port}; give two ports")
    if options.api_port is not None:
        check_port_is_free(options.host, options.api_port, "--api-port")


def run_demo(options: DemoOptions, console: Console | None = None) -> None:
    """Runs the demo until Ctrl-C, or with `check` until one question is answered.

    Args:
        options: Options of the demo.
        console: Receives the addresses and the state.

    Raises:
        CheckpointError: There is no such model folder.
        ConfigError: A port is in use, or a part stopped.
    """
    console = console or Console()
    if not options.base_url:
        check_model_path(options.model)
    if options.compare_with:
        check_model_path(options.compare_with)
        names = [get_model_name_from_path(path) for path in (options.model, options.compare_with)]
        if not options.base_url and names[0] == names[1]:
            raise ConfigError(
                f"--model {options.model} and --compare-with {options.compare_with} have the same "
                "name; rename one of the folders, so that the page can tell them apart"
            )
    check_ports(options)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    demo = Demo(options.log_dir)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    try:
        with console.status(f"loading {options.base_url or options.model} (Ctrl-C stops)"):
            controller = start_parts(demo, options)
            model = wait_until_ready(demo, options, controller)
        page, api = options.address(options.port), options.address(options.api_port)
        has_api = options.api_port is not None
        if options.check:
            console.print(f"{CHECK_QUESTION} -> {ask_once(controller, model)!r}")
            if has_api:
                console.print(f"the API answers {ask_api(api, model)!r}")
            return
        console.print(
            f"[bold green]{model}[/] answers at [bold]{page}[/]\n"
            f"{f'API: {api}/v1   ' if has_api else ''}logs: {options.log_dir}   stop: Ctrl-C"
        )
        while True:
            demo.check_alive()
            time.sleep(POLL_INTERVAL_S)
    except KeyboardInterrupt:
        console.print("\nstopping ...")
    finally:
        # A second Ctrl-C must not leave some of the parts running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)


# The module of `llava.serve` for each part.
ROLES = {
    "controller": "controller",
    "worker": "model_worker",
    "service": "openai_worker",
    "page": "gradio_web_server",
    "api": "openai_api",
}


def run_part(role: str, argv: Sequence[str]) -> None:
    """Runs one part in this process with the flags of its module; the page adds `--log-dir`."""
    module: Any = import_module(f"llava.serve.{ROLES[role]}")
    parser = module.build_parser()
    if role != "page":
        module.run(parser.parse_args(argv))
        return
    parser.add_argument("--log-dir", type=Path, required=True)
    args = parser.parse_args(argv)
    module.run(
        args,
        title="LRM-LLaVA",
        control=answer_language_control(),
        log_dir=args.log_dir,
        languages=page_languages(),
    )


def leave_with_parent() -> None:
    """Ends this process when its stdin closes, which happens when the demo has ended."""

    def watch() -> None:
        # The lock of sys.stdin would still be held when the interpreter ends.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(prog="python -m lrm_ext.demo")
    parser.add_argument("role", choices=list(ROLES))
    args, rest = parser.parse_known_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    leave_with_parent()
    run_command(lambda: run_part(args.role, rest))


if __name__ == "__main__":
    main()
