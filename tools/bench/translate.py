"""Batches of similar lengths, as the translation engines make them, against batches in order.

Usage: python tools/bench/translate.py [--shape tiny | nllb-600m] [--segments N] [--json FILE]

The model has random weights and NLLB's architecture; `nllb-600m` has the size of
facebook/nllb-200-distilled-600M and is for a GPU. Segments are random tokens whose lengths are
distributed like those of LLaVA's turns: most are short, a few are long. A random model does not
learn when to stop, so on both sides each answer is stopped after 1.2 times the tokens of its
segment. "peer" takes the segments in order, a fixed number per batch, pads them and calls
`generate` once for each batch. "equal": both sides gave the same tokens for every segment (in
bfloat16 a near tie may be resolved differently). Seconds are wall-clock time on a GPU and one
core's time on a CPU, after one batch to warm up.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _sides import entry, finish, parser_of
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    M2M100Config,
    M2M100ForConditionalGeneration,
)

from lrm_ext.translate.engines.seq2seq import (
    Found,
    Naming,
    Seq2SeqOptions,
    TorchRunner,
    length_class,
    make_batches,
    max_new_tokens,
)

SHAPES = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 4, "ffn": 512, "vocab_size": 4_000},
    "nllb-600m": {"d_model": 1024, "layers": 12, "heads": 16, "ffn": 4096, "vocab_size": 256_206},
}
_FIRST = 5  # the token that names the language in a real model
_LONGEST = 200


def main() -> None:
    """Measures both sides, prints the results and optionally saves them."""
    parser = parser_of(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--segments", type=int, default=256)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--naive-batch", type=int, nargs="+", default=[32])
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segments = make_segments(arguments.segments, SHAPES[arguments.shape]["vocab_size"])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.shape)
        for beams in arguments.beams:
            options = Seq2SeqOptions(
                folder, device=arguments.device, dtype=arguments.dtype, beams=beams
            )
            runner = load(options)
            bucketed = [
                ([segments[i] for i in batch], batch)
                for batch in make_batches(
                    {i: len(ids) for i, ids in enumerate(segments)}, arguments.tokens_per_batch
                )
            ]
            ours, ours_s = measure(runner, bucketed)
            for size in arguments.naive_batch:
                in_order = [
                    (segments[start : start + size], range(start, start + size))
                    for start in range(0, len(segments), size)
                ]
                peer, peer_s = measure(runner, in_order)
                kind = "greedy" if beams == 1 else f"{beams} beams"
                name = f"{arguments.shape}, {kind}, {runner.model.device.type}; peer's batch {size}"
                speeds = len(segments) / ours_s, len(segments) / peer_s
                found.append(entry(name, *speeds, "segments/s", ours == peer))
    finish(found, arguments.json)


def make_segments(number: int, vocab_size: int) -> list[list[int]]:
    """Returns random tokens; lengths are log-normal, with a median of 14."""
    rng = random.Random(0)
    lengths = [min(_LONGEST, max(3, round(rng.lognormvariate(2.6, 0.8)))) for _ in range(number)]
    return [[rng.randrange(10, vocab_size) for _ in range(n - 1)] + [2] for n in lengths]


def save_model(folder: Path, shape: str) -> None:
    """Writes a checkpoint with random weights, large enough that answers differ."""
    size = SHAPES[shape]
    config = M2M100Config(
        vocab_size=size["vocab_size"],
        d_model=size["d_model"],
        encoder_layers=size["layers"],
        decoder_layers=size["layers"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["ffn"],
        decoder_ffn_dim=size["ffn"],
        decoder_start_token_id=2,
        init_std=0.1,
    )
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(config).save_pretrained(folder)


def load(options: Seq2SeqOptions) -> TorchRunner:
    """Loads the model as the engines do, and makes it stop its answers."""
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: _FIRST)
    runner = TorchRunner(tokenizer, Found(None, "random"), options, Naming(first="x"))
    generate = runner.model.generate

    def ended(attention_mask: torch.Tensor, **more: Any) -> Any:
        lengths = attention_mask.sum(1).repeat_interleave(options.beams)
        ends = LogitsProcessorList([End((lengths * 1.2).long())])
        return generate(attention_mask=attention_mask, logits_processor=ends, **more)

    runner.model.generate = ended
    return runner


class End(LogitsProcessor):
    """Stops each answer after its number of tokens, and not before."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self._lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Allows only the end token at the end of an answer, and only other tokens before."""
        is_over = input_ids.shape[1] - 2 >= self._lengths
        end = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        end[2] = True
        return scores.masked_fill(is_over[:, None] ^ end[None, :], float("-inf"))


def measure(
    runner: TorchRunner, batches: Sequence[tuple[list[list[int]], Sequence[int]]]
) -> tuple[dict[int, list[int]], float]:
    """Translates all batches; returns the answers by number of segment, and seconds."""
    run: Callable[[list[list[int]]], Any] = lambda batch: runner.run(  # noqa: E731
        batch, max_new_tokens(length_class(max(map(len, batch))), None)
    )
    run(batches[0][0])
    start = _now(runner)
    found: dict[int, list[int]] = {}
    for batch, numbers in batches:
        answers = run(batch)
        found.update({i: answer.ids for i, answer in zip(numbers, answers, strict=False)})
    return found, _now(runner) - start


def _now(runner: TorchRunner) -> float:
    if runner.model.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
