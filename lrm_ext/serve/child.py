"""One process of the demo: controller, worker, page or API.

In: a role and the flags of the module in `llava.serve` that plays it. Out: that server, logging to
stderr. It leaves when its stdin closes, so that nothing outlives a demo that was killed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from llava.errors import run_command


def _run_controller(argv: list[str]) -> None:
    from llava.serve import controller

    controller.run(controller.build_parser().parse_args(argv))


def _run_worker(argv: list[str]) -> None:
    from llava.serve import model_worker

    model_worker.run(model_worker.build_parser().parse_args(argv))


def _run_page(argv: list[str]) -> None:
    from llava.serve import gradio_web_server
    from lrm_ext.serve.answer_language import answer_language_control, page_languages

    parser = gradio_web_server.build_parser()
    parser.add_argument("--log-dir", type=Path, required=True)
    args = parser.parse_args(argv)
    gradio_web_server.run(
        args,
        control=answer_language_control(),
        title="LRM-LLaVA",
        log_dir=args.log_dir,
        languages=page_languages(),
    )


def _run_api(argv: list[str]) -> None:
    from llava.serve import openai_api
    from llava.serve.openai_settings import build_parser

    openai_api.run(build_parser().parse_args(argv))


ROLES: dict[str, Callable[[list[str]], None]] = {
    "controller": _run_controller,
    "worker": _run_worker,
    "page": _run_page,
    "api": _run_api,
}


def leave_with_parent() -> None:
    """End this process when its stdin closes, that is, when the demo is gone."""

    def watch() -> None:
        # Not through sys.stdin: its lock would still be held when the interpreter ends.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one role."""
    parser = argparse.ArgumentParser(prog="python -m lrm_ext.serve.child")
    parser.add_argument("role", choices=list(ROLES))
    args, rest = parser.parse_known_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    leave_with_parent()
    run_command(lambda: ROLES[args.role](rest))


if __name__ == "__main__":
    main()
