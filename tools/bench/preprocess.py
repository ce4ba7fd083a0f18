"""Formatting, tokenising, label masking and image preparation, against LLaVA's method, per core.

Usage: python tools/bench/preprocess.py [--samples 1000] [--tokenizer FOLDER] [--json FILE]

Two inputs: the built-in corpus (one round, ten languages, all instructions), and records shaped
like LLaVA-1.5's mix (one to nine rounds in English, one in sixteen without an image). "peer" is a
reimplementation of LLaVA's method: a slow tokenizer; the prompt is encoded once, then each round
and each question is encoded again separately to find how many labels to mask, on tensors. "ours"
is `llava.data.tokenize.encode_turns`. Both start with conversations in memory, end with ids and
labels, and must agree on every one. "from the corpus" adds the mixture's preceding work to ours:
draw, read the row, format it.

The slow tokenizer is transformers' own (`SentencePieceBackend`), or, in separate rows, bare
SentencePiece without transformers around it: not used for training, but a lower bound for any
slow tokenizer. One process, one thread, processor seconds, the best of five turns. The default
vocabulary is the tests' small one; with a folder that holds a Llama `tokenizer.model`, sequences
are as long as in training.

Images are generated JPEG files, in the sizes of COCO images and of camera photos, for a tower of
336 pixels. "peer" decodes, pads, resizes and normalises to floats; "ours" stops at bytes, from
which the tower computes the same floats on the device: the floats are compared. Draft mode is off
by default, because its result is not equal: its rows state the mean difference in levels of 256.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, get_conversation
from llava.data.sample import Sample
from llava.data.tokenize import encode_turns, place_images
from llava.images import to_rgb

ROOT = Path(__file__).parents[2]
_SIDE = 336
_ROUNDS = (1, 1, 1, 1, 3, 3, 5, 5, 7, 9)
_WORDS = (
    "the a of in on is are and with to what who where which how many picture image man woman dog "
    "table street building people standing holding large small red white behind near front side "
    "background scene appears suggests atmosphere because several visible number text shown"
).split()

Ids = tuple[list[int], list[int]]
Side = tuple[Callable[[Any], Any], Sequence[Any]]


def main() -> None:
    """Measures both sides on both inputs, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "tests" / "golden" / "llava",
        help="folder with a Llama tokenizer.model",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fast = fast_tokenizer(arguments.tokenizer)
    slow = {
        "slow tokenizer": slow_tokenizer(arguments.tokenizer),
        "bare SentencePiece": BareLlama(arguments.tokenizer),
    }
    mixture = open_mixture()
    indices = range(arguments.samples)
    conv = get_conversation("v1")
    found = []
    for name, records in (
        ("built-in corpus", [mixture.sample(i).to_record() for i in indices]),
        ("like LLaVA's mix", [_record(number) for number in indices]),
    ):
        samples = [Sample.from_record(record, name) for record in records]
        sides: dict[str, Side] = {"ours": (lambda s: encode_ours(s, conv, fast), samples)}
        for peer, tokenizer in slow.items():
            sides[peer] = (partial(encode_peer, tokenizer=tokenizer), records)
        if name == "built-in corpus":
            sides["drawn"] = (lambda i: encode_ours(mixture.sample(i), conv, fast), indices)
        results, rates = measure(sides)
        length = sum(len(ids) for ids, _ in results["ours"]) / len(samples)
        for mine, peer in [("ours", peer) for peer in slow] + [("drawn", "slow tokenizer")]:
            if mine in sides:
                title = f"{name}, {length:.0f} tokens: {peer}"
                found.append(
                    {"name": title if mine == "ours" else f"{title}, ours from the corpus",
                     "ours": rates[mine], "peer": rates[peer], "ratio": rates[mine] / rates[peer],
                     "unit": "samples/s", "equal": results[mine] == results[peer]}
                )  # fmt: skip
    found += measure_pictures()
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "ours", "LLaVA's way", "times better", "same result")
    for entry in entries:
        sides = (f"{_rounded(entry[side])} {entry['unit']}" for side in ("ours", "peer"))
        same = {True: "yes", False: "NO", None: "-"}[entry["equal"]]
        table.add_row(entry["name"], *sides, f"{entry['ratio']:.1f}", same)
    Console(soft_wrap=True).print(table)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def measure(sides: dict[str, Side]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Returns each side's results and samples a second; sides take turns, the best counts."""
    results = {name: [encode(each) for each in inputs] for name, (encode, inputs) in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(5):
        for name, (encode, inputs) in sides.items():
            start = time.process_time()
            for each in inputs:
                encode(each)
            seconds[name].append(time.process_time() - start)
    return results, {name: len(results[name]) / min(seconds[name]) for name in sides}


def encode_ours(sample: Sample, conv: Conversation, tokenizer: Any) -> Ids:
    """Renders, tokenises once, and maps spans to tokens."""
    has_image = sample.image is not None
    turns = place_images(sample.turns, conv) if has_image else sample.turns
    encoded = encode_turns(turns, conv, tokenizer, has_image)
    return encoded.input_ids, encoded.labels


def encode_peer(record: dict[str, Any], tokenizer: Any) -> Ids:
    """Encodes as LLaVA does for Vicuna v1: counts the tokens of every piece separately."""
    conv = get_conversation("v1")
    has_image = "image" in record
    turns = copy.deepcopy(record["conversations"])
    for turn in turns:
        if has_image and "<image>" in turn["value"]:
            turn["value"] = turn["value"].replace("<image>", "").strip()
            turn["value"] = ("<image>\n" + turn["value"]).strip()
    conv.messages = []
    for i, turn in enumerate(turns):
        conv.append_message(conv.roles[i % 2], turn["value"])
    prompt = conv.get_prompt()

    def count(text: str) -> int:
        return len(_with_sentinels(text, tokenizer) if has_image else tokenizer(text).input_ids)

    if has_image:
        ids = torch.tensor(_with_sentinels(prompt, tokenizer), dtype=torch.long)
    else:
        ids = torch.tensor(tokenizer(prompt).input_ids[: tokenizer.model_max_length])
    labels = ids.clone()
    separator = conv.sep + conv.roles[1] + ": "
    labels[:1] = IGNORE_INDEX
    cursor = 1
    for round_text in prompt.split(conv.sep2):
        parts = round_text.split(separator)
        if not round_text or len(parts) != 2:
            break
        num_asked = count(parts[0] + separator) - 2
        labels[cursor : cursor + num_asked] = IGNORE_INDEX
        cursor += count(round_text)
    labels[cursor:] = IGNORE_INDEX
    if cursor < tokenizer.model_max_length and cursor != int(ids.ne(tokenizer.pad_token_id).sum()):
        labels[:] = IGNORE_INDEX
    return ids.tolist(), labels.tolist()


def _with_sentinels(prompt: str, tokenizer: Any) -> list[int]:
    """Encodes the chunks around each `<image>`, and puts the sentinel between them."""
    chunks = [tokenizer(chunk).input_ids for chunk in prompt.split("<image>")]
    ids = [tokenizer.bos_token_id]
    for i, chunk in enumerate(chunks):
        if i:
            ids.append(IMAGE_TOKEN_INDEX)
        ids += chunk[1:]
    return ids


def fast_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer that `llava` trains with."""
    from transformers import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(
        folder, legacy=True, add_bos_token=True, add_eos_token=False, pad_token="<unk>",
        model_max_length=2048,
    )  # fmt: skip


def slow_tokenizer(folder: Path) -> Any:
    """Returns transformers' slow tokenizer of the same file, as with `use_fast=False`."""
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class SlowLlama(SentencePieceBackend):
        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: Any = None
        ) -> list[int]:
            return [self.bos_token_id, *token_ids_0]

    return SlowLlama(
        vocab_file=str(folder / "tokenizer.model"), legacy=True, bos_token="<s>",
        eos_token="</s>", unk_token="<unk>", pad_token="<unk>", model_max_length=2048,
    )  # fmt: skip


class BareLlama:
    """SentencePiece with special tokens split off, without transformers' wrapper."""

    bos_token_id, pad_token_id, model_max_length = 1, 0, 2048

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(
            model_file=str(folder / "tokenizer.model")
        )

    def __call__(self, text: str) -> Any:
        """Encodes a text with BOS; the result has `input_ids`."""
        ids = [1]
        for i, part in enumerate(re.split("(<s>|</s>|<unk>)", text)):
            if part:
                ids += [self._model.piece_to_id(part)] if i % 2 else self._model.encode(part)
        return _Ids(ids)


class _Ids:
    def __init__(self, input_ids: list[int]) -> None:
        self.input_ids = input_ids


def measure_pictures() -> list[dict[str, Any]]:
    """Returns the rows of both sizes, without and with draft mode."""
    from llava.model.tiles import byte_table, to_floats
    from lrm_ext.training.feature_cache import ImageLoader

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
    )
    plain, draft = (ImageLoader(processor, "pad", uses_draft) for uses_draft in (False, True))
    table = byte_table(processor)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size, number in (((640, 480), 40), ((4000, 3000), 4)):
            paths = [_picture(Path(folder) / f"{size[0]}_{i}.jpg", size, i) for i in range(number)]
            sides: dict[str, Side] = {
                "ours": (plain, paths),
                "draft": (draft, paths),
                "peer": (lambda path: _peer_picture(path, processor), paths),
            }
            results, rates = measure(sides)
            for mine in ("ours", "draft"):
                floats = [to_floats(pixels, table) for pixels in results[mine]]
                equal: bool | None = all(map(torch.equal, floats, results["peer"]))
                name = f"picture of {size[0]} x {size[1]}"
                if mine == "draft":
                    levels = [
                        (left.float() - right.float()).abs().mean()
                        for left, right in zip(results["draft"], results["ours"], strict=True)
                    ]
                    name += f", draft mode ({torch.stack(levels).mean():.2f} levels)"
                    equal = equal or None
                found.append(
                    {"name": name, "ours": rates[mine], "peer": rates["peer"],
                     "ratio": rates[mine] / rates["peer"], "unit": "pictures/s", "equal": equal}
                )  # fmt: skip
    return found


def _peer_picture(path: Path, processor: Any) -> torch.Tensor:
    image = to_rgb(Image.open(path))
    side = max(image.size)
    colour = tuple(int(255 * mean) for mean in processor.image_mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels: torch.Tensor = processor.preprocess(square, return_tensors="pt")["pixel_values"][0]
    return pixels


def _picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Draws soft shapes with some noise, similar to a photograph."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + rng.integers(-6, 7, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def open_mixture() -> Any:
    """Opens all languages and instructions of the built-in corpus."""
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.mixture import Mixture, MixtureSpec

    return Mixture(MixtureSpec(), open_corpus(None))


def _record(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    has_image = rng.random() >= 1 / 16
    conversations = []
    for round_number in range(rng.choice(_ROUNDS)):
        start = "<image>\n" if round_number == 0 and has_image else ""
        conversations.append({"from": "human", "value": f"{start}{_sentence(rng, 4, 14)}?"})
        conversations.append({"from": "gpt", "value": f"{_sentence(rng, 1, 40)}."})
    image = {"image": f"coco/{number:012d}.jpg"} if has_image else {}
    return {"id": str(number), **image, "conversations": conversations}


def _sentence(rng: random.Random, shortest: int, longest: int) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(shortest, longest))).capitalize()


if __name__ == "__main__":
    main()
