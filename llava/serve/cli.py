"""Asks a model about one image in the terminal.

In: a checkpoint, an image, and one question per line. Out: streamed answers on stdout, everything
else on stderr. An empty line or the end of the input ends the chat, so questions may be piped in.

    python -m llava.serve.cli --model-path runs/mini --image-file photo.jpg
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import requests
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, select_conversation
from llava.errors import DataError, flag, make_parser, run_command
from llava.images import open_image
from llava.serve.check import check_model_path
from llava.serve.engine import ContextFull, Engine, GenerationRequest, load_engine
from llava.serve.protocol import TOO_LONG_MESSAGE

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 20
MAX_DOWNLOAD_BYTES = 50 * 1024 * 1024


def load_image(image_file: str) -> Image.Image:
    """Loads an image from a file or an http(s) URL.

    Returns:
        The image as RGB.

    Raises:
        DataError: The image is missing, unreachable or unreadable.
    """
    if not image_file.startswith(("http://", "https://")):
        return open_image(Path(image_file).expanduser(), orient=False)
    try:
        with requests.get(image_file, timeout=DOWNLOAD_TIMEOUT_S, stream=True) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_content(2**16):
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:
                    break
    except requests.RequestException as error:
        raise DataError(f"cannot download the image {image_file}: {error}") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise DataError(f"the image {image_file} is larger than {MAX_DOWNLOAD_BYTES} bytes")
    return open_image(bytes(content), image_file, orient=False)


def read_questions(role: str, source: TextIO, output: TextIO) -> Iterator[str]:
    """Yields questions until an empty line or the end of the input.

    Args:
        role: Shown before each question.
        source: Input with one question per line; lines from a pipe are echoed.
        output: Receives the role.
    """
    while True:
        output.write(f"{role}: ")
        output.flush()
        line = source.readline()
        question = line.strip()
        if not question:
            if not line:
                output.write("\n")
            output.write("exit...\n")
            return
        if not source.isatty():
            output.write(question + "\n")
        yield question


def write_answer(engine: Engine, request: GenerationRequest, output: TextIO) -> str:
    """Writes an answer while it is generated; returns it without the blanks that it begins with."""
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece if any(pieces) else piece.lstrip())
        output.write(pieces[-1])
        output.flush()

    engine.answer(request, write)
    return "".join(pieces)


def chat(
    engine: Engine,
    conversation: Conversation,
    image: Image.Image,
    args: argparse.Namespace,
    source: TextIO,
    output: TextIO,
) -> None:
    """Answers questions about an image until the input ends.

    Args:
        engine: The loaded model.
        conversation: A new conversation, to which questions and answers are added.
        image: The image, placed before the first question.
        args: `temperature`, `max_new_tokens`, `debug`.
        source: Input with one question per line.
        output: Receives the answers.
    """
    roles = ("user", "assistant") if "mpt" in engine.name.lower() else conversation.roles
    for question in read_questions(roles[0], source, output):
        has_image = any(DEFAULT_IMAGE_TOKEN in (text or "") for _, text in conversation.messages)
        text = question if has_image else f"{DEFAULT_IMAGE_TOKEN}\n{question}"
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        request = GenerationRequest(
            prompt=prompt,
            images=(image,) * prompt.count(DEFAULT_IMAGE_TOKEN),
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            stop=conversation.answer_end,
        )
        output.write(f"{roles[1]}: ")
        try:
            answer = write_answer(engine, request, output)
        except ContextFull:
            output.write(TOO_LONG_MESSAGE + "\n")
            return
        output.write("\n")
        conversation.messages[-1][-1] = answer.strip()
        if args.debug:
            log.info("prompt: %r", prompt)
            log.info("output: %r", answer)


def main(args: argparse.Namespace) -> None:
    """Loads image and model, then chats on stdin and stdout.

    Args:
        args: The flags of `build_parser`.

    Raises:
        UserError: Image, checkpoint or template cannot be used.
    """
    check_model_path(args.model_path)
    image = load_image(args.image_file)
    engine = load_engine(
        args.model_path,
        args.model_base,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        device=args.device,
    )
    name, conversation = select_conversation(engine.model.config, engine.name, args.conv_mode)
    log.debug("conversation template %s", name)
    chat(engine, conversation, image, args, sys.stdin, sys.stdout)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        flag("--model-path", default="facebook/opt-350m"),
        flag("--model-base"),
        flag("--image-file", required=True),
        flag("--device", default="cuda"),
        flag("--conv-mode"),
        flag("--temperature", type=float, default=0.2),
        flag("--max-new-tokens", type=int, default=512),
        flag("--load-8bit", action="store_true"),
        flag("--load-4bit", action="store_true"),
        flag("--debug", action="store_true", help="show prompt and output"),
        prog="python -m llava.serve.cli",
    )


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    run_command(lambda: main(args))


if __name__ == "__main__":
    run()
