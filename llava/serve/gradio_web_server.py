"""Starts the web page on which users ask about images.

In: the address of a controller. Out: a Gradio page. Its fields are in `llava.serve.page`, its
handlers in `llava.serve.chat`; another package may add fields through `PromptControl`.

    python -m llava.serve.gradio_web_server --controller-url http://localhost:21001
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import requests
from starlette.middleware import Middleware

from llava.constants import LOGDIR
from llava.errors import ConfigError, run_command
from llava.serve import protocol
from llava.serve.chat import (
    add_text,
    clear_history,
    downvote_last_response,
    flag_last_response,
    http_bot,
    regenerate,
    upvote_last_response,
    vote_last_response,
)
from llava.serve.check import check_port_is_free
from llava.serve.page import CSS, Page
from llava.serve.page_guard import PageGuard, add_safety_flags, settings_from
from llava.serve.page_state import (
    DAY_S,
    PageSettings,
    PromptControl,
    conv_log_path,
    preferred_language,
    start_sweeper,
)
from llava.utils import build_logger

__all__ = [
    "PageSettings",
    "PromptControl",
    "add_text",
    "build_demo",
    "clear_history",
    "downvote_last_response",
    "flag_last_response",
    "get_conv_log_filename",
    "get_model_list",
    "http_bot",
    "launch_options",
    "load_demo",
    "load_demo_refresh_model_list",
    "regenerate",
    "upvote_last_response",
    "vote_last_response",
]

log = logging.getLogger(__name__)

TITLE = "LLaVA"
EXAMPLES_ROOT = Path(__file__).parents[2] / "playground" / "data" / "emoji_scenes"
MAX_UPLOAD = "20mb"
CACHE_SWEEP_S = 600
CACHE_AGE_S = 3600
# Gradio's indigo with darker shades for text, so that the contrast is at least 4.5 to 1.
PRIMARY = gr.themes.Color(
    name="primary",
    c50="#eef2ff",
    c100="#e0e7ff",
    c200="#c7d2fe",
    c300="#a5b4fc",
    c400="#818cf8",
    c500="#4f46e5",
    c600="#4338ca",
    c700="#3730a3",
    c800="#312e81",
    c900="#2b2c5e",
    c950="#24254f",
)
# Names Gradio's unnamed button around an image in the conversation after the image field.
NAME_BUTTONS = """
<script>
new MutationObserver(() => {
  const label = document.querySelector('#picture [data-testid="block-label"]');
  const name = label ? label.innerText.trim() : "";
  for (const frame of document.querySelectorAll("button:not([aria-label]) > .image-frame")) {
    if (name) frame.parentElement.setAttribute("aria-label", name);
  }
}).observe(document, {childList: true, subtree: true});
</script>
"""
READ_MODEL_FROM_URL = """
() => new URLSearchParams(window.location.search).get("model") || ""
"""


def get_model_list(settings: PageSettings) -> list[str]:
    """Returns the models that the controller knows; [] if it does not answer."""
    try:
        return protocol.get_model_list(settings.controller_url)
    except (requests.RequestException, ValueError, KeyError) as error:
        log.error("controller %s: %s", settings.controller_url, error)
        return []


def get_conv_log_filename(log_dir: Path = Path(LOGDIR)) -> str:
    """Returns the path of today's conversation log."""
    return str(conv_log_path(log_dir))


def load_demo(url_model: str, *, settings: PageSettings) -> list[Any]:
    """Fills the page with the models known at the start.

    Args:
        url_model: Value of `?model=`; the first model is chosen if it is "" or unknown.
        settings: The page's settings.

    Returns:
        Updates for the model list and the notice.
    """
    models = list(settings.models)
    chosen = url_model if url_model in models else next(iter(models), None)
    return [gr.update(choices=models, value=chosen), gr.update(visible=not models)]


def load_demo_refresh_model_list(url_model: str, *, settings: PageSettings) -> list[Any]:
    """Fills the page with the models that run now; see `load_demo`."""
    return load_demo(url_model, settings=replace(settings, models=get_model_list(settings)))


def load_page(url_model: str, request: gr.Request, *, settings: PageSettings) -> list[Any]:
    """Fills the page when a user opens it.

    Returns:
        Updates for the model list, the notice, the second model, the comparison switch and the
        page's language.
    """
    reload = settings.model_list_mode == "reload"
    update = load_demo_refresh_model_list if reload else load_demo
    model, notice = update(url_model, settings=settings)
    models = model["choices"]
    second = next((name for name in models if name != model["value"]), model["value"])
    accepted = request.headers.get("accept-language", "") if request.headers else ""
    return [
        model,
        notice,
        gr.update(choices=models, value=second),
        gr.update(visible=len(models) > 1),
        preferred_language(accepted, settings.languages),
    ]


def build_demo(
    embed_mode: bool,
    cur_dir: str | Path | None = None,
    concurrency_count: int = 10,
    *,
    settings: PageSettings | None = None,
    title: str = TITLE,
) -> gr.Blocks:
    """Builds the page.

    Args:
        embed_mode: Leave out title and terms.
        cur_dir: Folder with `examples/`; by default the built-in images.
        concurrency_count: How many answers may stream at the same time.
        settings: Settings of the page.
        title: Heading of the page.

    Returns:
        The page; start it with `demo.queue(api_open=False).launch(**launch_options())`.
    """
    settings = settings or PageSettings()
    with gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S),
    ) as demo:
        url_model = gr.Textbox(visible=False)
        page = Page(settings, Path(cur_dir) if cur_dir else EXAMPLES_ROOT, title, embed_mode)
        page.connect(concurrency_count)
        first, second = page.sides

        def load(wanted: str, request: gr.Request) -> list[Any]:
            return load_page(wanted, request, settings=settings)

        demo.load(
            load,
            url_model,
            [first.model, page.notice, second.model, page.compare, page.language],
            js=READ_MODEL_FROM_URL,
            show_progress="hidden",
        )
    return demo


def launch_options(settings: PageSettings | None = None) -> dict[str, Any]:
    """Returns the arguments of `Blocks.launch` for this page: style and limits."""
    settings = settings or PageSettings()
    # System fonts, because the page must not load anything from another server.
    theme = gr.themes.Soft(
        primary_hue=PRIMARY,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {
        "theme": theme,
        "css": CSS,
        "head": NAME_BUTTONS,
        "max_file_size": MAX_UPLOAD,
        "footer_links": [],
        "show_error": True,
        "ssr_mode": False,
        "quiet": True,
        "app_kwargs": {"middleware": [Middleware(PageGuard, settings=settings)]},
        "allowed_paths": [],
        "blocked_paths": [str(settings.log_dir.resolve())],
        "enable_monitoring": False,
    }


def serve(
    demo: gr.Blocks, host: str, port: int | None, share: bool, settings: PageSettings
) -> None:
    """Serves a page until SIGINT or SIGTERM.

    Args:
        demo: The page.
        host: Address to listen on.
        port: Port to listen on; None takes the first free one from 7860.
        share: Also serve the page through Gradio's tunnel.
        settings: The page's settings.

    Raises:
        ConfigError: The port is in use or invalid, or the host is unknown.
    """
    if port is not None:
        check_port_is_free(host, port)
    finished = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.set())
    # Gradio's uvicorn would otherwise trust the header from the local machine
    os.environ["FORWARDED_ALLOW_IPS"] = settings.forwarded_allow_ips
    sweeper = start_sweeper(settings.log_dir, settings.keep_days * DAY_S)
    try:
        _, url, _ = demo.queue(api_open=False).launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            **launch_options(settings),
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    log.info("the page is at %s", url)
    finished.wait()
    sweeper.set()
    demo.close(verbose=False)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.gradio_web_server", description=__doc__
    )
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int)
    parser.add_argument("--controller-url", default="http://localhost:21001")
    parser.add_argument("--concurrency-count", type=int, default=16)
    parser.add_argument("--model-list-mode", choices=["once", "reload"], default="once")
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--moderate", action="store_true")
    parser.add_argument("--embed", action="store_true")
    add_safety_flags(parser)
    return parser


def run(args: argparse.Namespace, title: str = TITLE, **own: Any) -> None:
    """Serves the page until it is interrupted.

    Args:
        args: The flags of `build_parser`.
        title: Heading of the page.
        own: Settings without a flag: `control`, `log_dir`, `languages`.
    """
    settings = settings_from(args, **own)
    settings = replace(settings, models=tuple(get_model_list(settings)))
    if not settings.models:
        log.warning("no model runs at %s yet", args.controller_url)
    demo = build_demo(
        args.embed, concurrency_count=args.concurrency_count, settings=settings, title=title
    )
    serve(demo, args.host, args.port, args.share, settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = build_parser().parse_args(argv)
    build_logger("gradio_web_server", "gradio_web_server.log")
    run(args)


if __name__ == "__main__":
    run_command(main)
