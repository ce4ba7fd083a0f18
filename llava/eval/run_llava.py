"""Ask a model one question about one or more pictures.

In: a checkpoint, image files or URLs, a question. Out: the answer, on the terminal. Usage:
python -m llava.eval.run_llava --model-path runs/mini --image-file a.png --query "What is this?"
A URL is fetched only because the user typed it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import requests
import torch
import typer
from PIL import Image

from llava.constants import (
    IMAGE_PLACEHOLDER,
)
from llava.conversation import select_conversation
from llava.errors import DataError, run_script
from llava.eval.model_vqa import Sampling, image_token
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import MultimodalConfig

DOWNLOAD_TIMEOUT_S = 30


def image_parser(args: Any) -> list[str]:
    """Split `args.image_file` at `args.sep` into file names and URLs."""
    image_files: list[str] = args.image_file.split(args.sep)
    return image_files


def load_image(image_file: str) -> Image.Image:
    """Open a picture, a file or an http(s) URL, as RGB.

    Raises:
        DataError: it cannot be had or is no picture.
    """
    if not image_file.startswith(("http://", "https://")):
        return open_image(image_file, orient=False)
    try:
        response = requests.get(image_file, timeout=DOWNLOAD_TIMEOUT_S)
        response.raise_for_status()
    except requests.RequestException as error:
        raise DataError(f"cannot download the picture {image_file}: {error}") from error
    return open_image(response.content, image_file, orient=False)


def load_images(image_files: Iterable[str]) -> list[Image.Image]:
    """Open several pictures; see `load_image`."""
    return [load_image(image_file) for image_file in image_files]


def build_question(query: str, num_images: int, wrap: bool) -> str:
    """Put image tokens into the question.

    Args:
        query: the user's text; every `<image-placeholder>` becomes an image token. Without one
            the images go before the text, one a line.
        num_images: how many pictures there are.
        wrap: put `<im_start>` and `<im_end>` around each (`mm_use_im_start_end`).
    """
    token = image_token(wrap)
    if IMAGE_PLACEHOLDER in query:
        return query.replace(IMAGE_PLACEHOLDER, token)
    return f"{token}\n" * num_images + query


def eval_model(args: Any) -> str:
    """Load the model, answer one question and show the answer.

    Args:
        args: anything with the attributes `model_path model_base image_file query conv_mode sep
            temperature top_p num_beams max_new_tokens`, perhaps `device`.

    Returns:
        The answer that was shown.

    Raises:
        UserError: the checkpoint, a picture or the question is not as it must be.
    """
    images = load_images(image_parser(args))
    model_name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, model_name, device=getattr(args, "device", "cuda")
    )
    if image_processor is None:
        raise DataError(f"{args.model_path} is a text-only model: it cannot look at pictures")
    wrap = MultimodalConfig.from_config(model.config).mm_use_im_start_end
    _, conversation = select_conversation(model.config, model_name, args.conv_mode)
    question = build_question(args.query, len(images), wrap)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    input_ids = torch.tensor([tokenizer_image_token(conversation.get_prompt(), tokenizer)])
    sampling = Sampling(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    with torch.inference_mode():
        output_ids = model.generate(
            input_ids.to(model.device),
            images=process_images(images, image_processor, model.config),
            image_sizes=[image.size for image in images],
            use_cache=True,
            **sampling.keywords(),
        )
    answer: str = tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0].strip()
    typer.echo(answer)
    return answer


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = argparse.ArgumentParser(description="Ask a model about pictures.")
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--image-file", required=True, help="files or URLs, joined by --sep")
    parser.add_argument("--query", required=True, help=f"may hold {IMAGE_PLACEHOLDER}")
    parser.add_argument("--conv-mode", default=None)
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    run_script(eval_model, parser, argv)


if __name__ == "__main__":
    main()
