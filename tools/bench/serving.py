"""Clients x tokens/s x latency of the worker: requests in one batch, against one at a time.

Usage: python tools/bench/serving.py [--clients 1 4 16] [--model FOLDER] [--json FILE]

Each side is a model worker in its own process, with the same model, asked over HTTP by the same
clients for the same greedy answers, half of them about an image. "ours" allows as many requests
in a step as there are clients. "peer" is the same worker with one request at a time; `--generate`
adds a third side, LLaVA's method: one request at a time by transformers' `generate`. All clients
ask at the same time, `--rounds` times each, after two questions that are not measured. "equal"
states whether every answer is the same to the last character. Without `--model` the model is the
base model of the `mini` preset with an untrained projector: its answers are meaningless, but their
cost is representative.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
MINI = ROOT / "playground" / "models" / "mini"
START_TIMEOUT_S = 300.0
MIN_QUESTIONS = 16
NUM_SPECIAL = 3  # <unk>, <s>, </s>
_WORDS = "what is in the picture and how many of them are red or blue or there".split()


@dataclass(frozen=True)
class Answer:
    """An answer with its times, in seconds after the question; -1 tokens if not counted."""

    text: str
    num_tokens: int
    first_s: float
    last_s: float


@dataclass(frozen=True)
class Measured:
    """The measurements of one side for a number of clients."""

    seconds: float
    answers: list[Answer]

    def tokens_per_s(self, counted: list[Answer]) -> float:
        """Returns the tokens of all answers over the time until the last answer.

        Args:
            counted: The same answers from a side that counts tokens.
        """
        return sum(answer.num_tokens for answer in counted) / self.seconds

    def first_token(self, percent: int) -> float:
        """Returns a percentile of the time to the first text, in seconds."""
        return _percentile([answer.first_s for answer in self.answers], percent)


def main() -> None:
    """Runs all sides, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--rounds", type=int, default=2, help="questions per client; at least 16 in total"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--model", help="checkpoint; default: one made from the mini base models")
    parser.add_argument("--device", default="cuda", help="device; falls back to cpu without CUDA")
    parser.add_argument("--generate", action="store_true", help="also measure generate()")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or make_checkpoint(Path(folder) / "llava-mini")
        for num_clients in arguments.clients:
            rounds = max(arguments.rounds, -(-MIN_QUESTIONS // num_clients))
            bodies = make_bodies(num_clients, rounds, arguments.max_new_tokens)
            sides = {
                side: run_side(side, model, arguments.device, num_clients, bodies)
                for side in ("batch", "one", *(["generate"] if arguments.generate else []))
            }
            found += figures(num_clients, sides)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def figures(num_clients: int, sides: dict[str, Measured]) -> list[dict[str, Any]]:
    """Returns the entries for one number of clients."""
    ours = sides["batch"]
    entries = []
    for name, peer in sides.items():
        if name == "batch":
            continue
        suffix = "" if name == "one" else ", against generate()"
        equal = [a.text for a in ours.answers] == [a.text for a in peer.answers]
        counted = peer.answers if name == "one" else ours.answers
        speeds = ours.tokens_per_s(ours.answers), peer.tokens_per_s(counted)
        rows = [("tokens", *speeds, "tokens/s")]
        for percent in (50, 95):
            mine, theirs = ours.first_token(percent), peer.first_token(percent)
            rows.append((f"first token, p{percent}", mine, theirs, "s"))
        for what, mine, theirs, unit in rows:
            ratio = theirs / mine if unit == "s" else mine / theirs
            entries.append(
                {"name": f"{num_clients} clients: {what}{suffix}", "ours": mine, "peer": theirs,
                 "ratio": ratio, "unit": unit, "equal": equal}
            )  # fmt: skip
    return entries


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "in one batch", "one at a time", "times better", "same answers")
    for entry in entries:
        digits = 3 if entry["unit"] == "s" else 0
        shown = [f"{entry[side]:,.{digits}f} {entry['unit']}" for side in ("ours", "peer")]
        same = "yes" if entry["equal"] else "NO"
        table.add_row(entry["name"], *shown, f"{entry['ratio']:.1f}", same)
    Console(soft_wrap=True).print(table)


def make_checkpoint(path: Path) -> str:
    """Joins the mini base models to a LLaVA checkpoint with a random projector."""
    import torch
    from transformers import AutoTokenizer

    from llava.model import LlavaLlamaForCausalLM

    torch.manual_seed(0)
    model = LlavaLlamaForCausalLM.from_pretrained(MINI / "llm", dtype=torch.float32)
    model.get_model().initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str(MINI / "vision_tower"),
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_projector_type="mlp2x_gelu",
            mm_patch_merge_type="flat",
            pretrain_mm_mlp_adapter=None,
        )
    )
    model.config.image_aspect_ratio = "pad"
    # with an untrained projector most answers would end at once; these reach their full length
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.get_input_embeddings().weight[:NUM_SPECIAL] = 0  # tied to the head
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(MINI / "llm").save_pretrained(path)
    return str(path)


def make_bodies(
    num_clients: int, rounds: int, max_new_tokens: int, seed: int = 0
) -> list[list[dict[str, Any]]]:
    """Returns the requests of each client, in order."""
    rng = random.Random(seed)
    clients = []
    for client in range(num_clients):
        bodies = []
        for number in range(rounds):
            has_picture = (client + number) % 2 == 0
            question = " ".join(rng.choices(_WORDS, k=rng.randint(4, 40)))
            placeholder = "<image>\n" if has_picture else ""
            bodies.append(
                {
                    "prompt": f"USER: {placeholder}{question}? ASSISTANT:",
                    "images": [_picture(rng)] if has_picture else [],
                    "temperature": 0,
                    "max_new_tokens": max_new_tokens,
                    "details": True,
                }
            )
        clients.append(bodies)
    return clients


def _picture(rng: random.Random) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.new("RGB", (96, 64), colour).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def run_side(
    side: str, model: str, device: str, num_clients: int, bodies: list[list[dict[str, Any]]]
) -> Measured:
    """Starts a worker, asks all questions and stops the worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(side, model, device, num_clients, port))
    process.start()
    try:
        return asyncio.run(ask_all(f"http://127.0.0.1:{port}", bodies))
    finally:
        process.terminate()
        process.join()


def serve(side: str, model: str, device: str, num_clients: int, port: int) -> None:
    """Serves the model until terminated."""
    from llava.serve.batch import ThreadScheduler
    from llava.serve.engine import load_engine
    from llava.serve.model_worker import ModelWorker, app
    from llava.serve.web import run_server

    limit = num_clients if side == "batch" else 1
    worker = ModelWorker(
        "", "", side, True, "", None, None, False, False, "cpu",
        engine=load_engine(model, device=device),
        limit_model_concurrency=limit,
        max_waiting=num_clients,
    )  # fmt: skip
    if side == "generate":
        worker.scheduler.close()
        worker.scheduler = ThreadScheduler(worker.engine, 1, num_clients)
    worker.warm_up()
    app.state.worker = worker
    run_server(app, "127.0.0.1", port)


async def ask_all(worker: str, clients: list[list[dict[str, Any]]]) -> Measured:
    """Let all clients ask at the same time, each one question after the other."""
    from llava.serve.openai_chat import AsyncClient

    client = AsyncClient("")
    await _wait_for(worker)
    # not measured: other questions, so that neither side pays for one-time loading
    await _ask(client, worker, make_bodies(1, 2, 8, seed=1)[0])
    started = time.monotonic()
    found = await asyncio.gather(*(_ask(client, worker, bodies) for bodies in clients))
    seconds = time.monotonic() - started
    await client.aclose()
    return Measured(seconds, [answer for answers in found for answer in answers])


async def _wait_for(worker: str) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                await client.post(worker + "/worker_get_status")
                return
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
    raise TimeoutError(f"the worker did not start within {START_TIMEOUT_S:.0f} s")


async def _ask(client: Any, worker: str, bodies: list[dict[str, Any]]) -> list[Answer]:
    answers = []
    for body in bodies:
        started, first_s, num_tokens, text = time.monotonic(), None, -1, ""
        async for chunk in client.stream_generation(worker, body):
            assert chunk["error_code"] == 0, chunk
            text = chunk["text"][len(body["prompt"]) :]
            if text and first_s is None:
                first_s = time.monotonic() - started
            if usage := chunk.get("usage"):
                num_tokens = usage["completion_tokens"]
        last_s = time.monotonic() - started
        answers.append(Answer(text, num_tokens, first_s or last_s, last_s))
    return answers


def _percentile(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    main()
