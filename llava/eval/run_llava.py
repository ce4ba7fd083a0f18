"""Asks a model one question about one or more images.

In: a checkpoint, image files or URLs, a question. Out: the answer, on the terminal. Usage:
python -m llava.eval.run_llava --model-path runs/mini --image-file a.png --query "What is this?"
A URL is fetched only because the user typed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import typer
from PIL import Image

from llava.constants import IMAGE_PLACEHOLDER
from llava.conversation import select_conversation
from llava.errors import DataError, flag, script_main
from llava.eval.model_vqa import Sampling, image_token, question_ids
from llava.mm_utils import get_model_name_from_path, process_images
from llava.model.builder import load_pretrained_model
from llava.serve.cli import load_image as load_image


def image_parser(args: Any) -> list[str]:
    """Splits `args.image_file` at `args.sep` into file names and URLs."""
    return list(args.image_file.split(args.sep))


def load_images(image_files: Iterable[str]) -> list[Image.Image]:
    """Opens several images, files or http(s) URLs, as RGB; see `load_image`."""
    return [load_image(image_file) for image_file in image_files]


def build_question(query: str, num_images: int, token: str) -> str:
    """Puts image tokens into the question.

    Args:
        query: The user's text; every `<image-placeholder>` becomes an image token. Without one
            the images go before the text, one per line.
        num_images: How many images there are.
        token: Placeholder of an image in the model's prompts.
    """
    if IMAGE_PLACEHOLDER in query:
        return query.replace(IMAGE_PLACEHOLDER, token)
    return f"{token}\n" * num_images + query


def eval_model(args: Any) -> str:
    """Loads the model, answers one question and shows the answer.

    Args:
        args: Anything with the attributes `model_path model_base image_file query conv_mode sep
            temperature top_p num_beams max_new_tokens`, perhaps `device`.

    Returns:
        The answer that was shown.

    Raises:
        UserError: The checkpoint, an image or the question is invalid.
    """
    images = load_images(image_parser(args))
    model_name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, model_name, device=getattr(args, "device", "cuda")
    )
    if image_processor is None:
        raise DataError(f"{args.model_path} is a text-only model: it cannot look at images")
    _, conversation = select_conversation(model.config, model_name, args.conv_mode)
    question = build_question(args.query, len(images), image_token(model.config))
    input_ids = torch.tensor([question_ids(question, conversation, tokenizer)])
    sampling = Sampling(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    with torch.inference_mode():
        output_ids = model.generate(
            input_ids.to(model.device),
            images=process_images(images, image_processor, model.config, is_one_prompt=True),
            image_sizes=[image.size for image in images],
            use_cache=True,
            **sampling.keywords(),
        )
    answer: str = tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0].strip()
    typer.echo(answer)
    return answer


main = script_main(
    "Ask a model about images.",
    eval_model,
    flag("--model-path", default="facebook/opt-350m"),
    flag("--model-base", default=None),
    flag("--image-file", required=True, help="files or URLs, joined by --sep"),
    flag("--query", required=True, help=f"may hold {IMAGE_PLACEHOLDER}"),
    flag("--conv-mode", default=None),
    flag("--sep", default=","),
    flag("--temperature", type=float, default=0.2),
    flag("--top_p", type=float, default=None),
    flag("--num_beams", type=int, default=1),
    flag("--max_new_tokens", type=int, default=512),
    flag("--device", default="cuda"),
)


if __name__ == "__main__":
    main()
