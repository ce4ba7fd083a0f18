"""The steps of the GPU check; `check.py` runs each in a process of its own.

Usage: python tools/gpu/steps.py STEP --out FOLDER [--dry-run] [--vllm-python FILE]

Writes `STEP.json` into the folder: state, reason, figures. A step fails by an `AssertionError`, or
any other exception, and is skipped by `CannotRunError`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "bench")]

PACKAGES = ("torch", "triton", "transformers", "flash-attn", "liger-kernel", "bitsandbytes",
            "deepspeed", "peft", "accelerate")  # fmt: skip
CORPUS = Path("playground", "data", "emoji_scenes", "corpus", "finetune")
# relative differences in bf16, which has 8 bits; without borders between samples they are tenfold
MAX_LOSS_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 0.01, 0.05
GIB = 2**30
# of weights, gradients and moments, all in bf16
STATE_BYTES = 8


class CannotRunError(Exception):
    """The step cannot run here; the message says what is missing."""


class Given(NamedTuple):
    """What a step is run with."""

    out: Path
    dry_run: bool
    vllm_python: str | None

    @property
    def device(self) -> str:
        """`cuda`, or `cpu` in a dry run."""
        return "cpu" if self.dry_run else "cuda"


Figures = dict[str, Any]


def main() -> int:
    """Runs one step and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=RUNS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--vllm-python")
    arguments = parser.parse_args()
    given = Given(arguments.out, arguments.dry_run, arguments.vllm_python)
    if given.dry_run:
        os.environ.update(CUDA_VISIBLE_DEVICES="", NUM_GPUS="0")
        if arguments.step == "liger":
            os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ["NUM_GPUS"] = "1"
    result: dict[str, Any] = {"state": "ok", "reason": "", "figures": {}}
    try:
        result["figures"] = RUNS[arguments.step](given)
    except CannotRunError as error:
        result |= {"state": "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        result |= {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
    path = given.out / f"{arguments.step}.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    return 0 if result["state"] != "failed" else 1


def need(*packages: str) -> None:
    """Raises `CannotRunError` if a package, named as it is imported, is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotRunError(f"not installed: {', '.join(missing)}")


def need_gpu(given: Given) -> None:
    """Fails where a GPU is meant to be used and is not there."""
    import torch

    if not given.dry_run:
        assert torch.cuda.is_available(), (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU (try --dry-run)"
        )


def run(command: list[str], **environment: str) -> None:
    """Runs a command whose output goes to the step's log.

    Raises:
        AssertionError: Its exit code is not 0.
    """
    print("+", " ".join(command), flush=True)  # noqa: T201
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
    assert code == 0, f"exit code {code} of: {' '.join(command)[:200]}"


def versions(given: Given) -> Figures:
    """Returns the versions of packages, driver and GPU."""
    import torch

    need_gpu(given)
    found: Figures = {"python": platform.python_version(), "torch's CUDA": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if not given.dry_run:
        properties = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{properties.name}, {properties.total_memory / GIB:.1f} GiB, " + (
            f"compute capability {properties.major}.{properties.minor}"
        )
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found


def data(given: Given) -> Figures:
    """Unpacks the built-in corpus, if that was not done yet."""
    if not (ROOT / CORPUS / "corpus.toml").is_file():
        run([sys.executable, "-m", "lrm_ext.cli", "corpus", "unpack-emoji"])
    return {}


def attention(given: Given) -> Figures:
    """Compares losses and gradients of a packed batch between implementations of attention.

    The reference is packed SDPA in float32. A pack whose borders are removed must differ, else the
    comparison would prove nothing.
    """
    import _pair
    import torch
    from flash_stand_in import installed

    need_gpu(given)
    if not given.dry_run:
        need("flash_attn")
    shape = _pair.SHAPES["tiny"]._replace(num_layers=4)
    if not given.dry_run:
        shape = shape._replace(hidden_size=512, intermediate_size=1024, num_heads=8)
    items = _pair.make_items(shape, 8, 4, max_text=400)
    pixels = torch.randn(4, 3, shape.image_size_px, shape.image_size_px)

    def measure(attention: str, dtype: torch.dtype, packed: bool = True) -> tuple[float, Any]:
        with tempfile.TemporaryDirectory() as folder:
            model = _pair.build_llava(shape, Path(folder), dtype, given.device, attention)
        model.train()
        if not packed:  # one sample where there were eight
            rows = model.pack_inputs
            model.pack_inputs = lambda *inputs: without_borders(rows(*inputs))
        batch = _pair.our_batch(items, pixels.to(dtype), "images")
        batch.pop("sample_ids")
        batch = {key: value.to(given.device) for key, value in batch.items()}
        loss = model(**batch, packing=True).loss
        loss.backward()
        grads = [p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(grads)

    reference = measure("packed_sdpa", torch.float32)
    found, differences = {}, {}
    with installed() if given.dry_run else nullcontext([1]) as calls:
        for name in ("flash_attention_2", "packed_sdpa", "sdpa", "eager", "without borders"):
            is_packed = name != "without borders"
            implementation = name if is_packed else "packed_sdpa"
            loss, gradient = measure(implementation, torch.bfloat16, is_packed)
            away = float((gradient - reference[1]).norm() / reference[1].norm())
            differences[name] = (abs(loss / reference[0] - 1), away)
            found[f"loss, {name}"], found[f"gradient off by, {name}"] = loss, away
    assert calls, "flash-attention was not called"
    far = differences.pop("without borders")
    assert far[1] > 2 * MAX_GRADIENT_DIFFERENCE, f"borders change nothing: {far}"
    for name, (of_loss, of_gradient) in differences.items():
        is_near = of_loss < MAX_LOSS_DIFFERENCE and of_gradient < MAX_GRADIENT_DIFFERENCE
        assert is_near, f"{name} is off by {of_loss:.2g} (loss), {of_gradient:.2g} (gradient)"
    return found


def without_borders(rows: Any) -> Any:
    """Returns packed rows as if they were one sample; positions stay."""
    length = rows.embeds.shape[1]
    ends = rows.cu_seq_lens[[0, -1]]
    return rows._replace(cu_seq_lens=ends, max_length=length)


def liger(given: Given) -> Figures:
    """Compares Liger's loss and gradients with the plain ones, also from float32 under autocast."""
    need("liger_kernel", "triton")
    need_gpu(given)
    import torch

    from llava.model.loss import causal_lm_loss

    rows, width, vocabulary = (64, 32, 300) if given.dry_run else (4096, 2048, 32_000)
    dtypes = [torch.float32] if given.dry_run else [torch.bfloat16, torch.float32]
    found: Figures = {}
    for dtype in dtypes:
        torch.manual_seed(0)
        options: dict[str, Any] = {"device": given.device, "dtype": dtype}
        head = torch.nn.Linear(width, vocabulary, bias=False, **options)
        hidden = torch.randn(1, rows, width, **options)
        labels = torch.randint(vocabulary, (1, rows), device=given.device)
        losses: list[float] = []
        gradients: list[torch.Tensor] = []
        for use_liger in (True, False):
            inputs = hidden.clone().requires_grad_()
            head.weight.grad = None
            with torch.autocast(given.device, torch.bfloat16, enabled=not given.dry_run):
                loss = causal_lm_loss(inputs, labels, head, use_liger=use_liger)
            loss.backward()
            losses.append(loss.item())
            assert inputs.grad is not None and head.weight.grad is not None
            gradients.append(torch.cat([inputs.grad.flatten(), head.weight.grad.flatten()]).float())
        away = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
        found |= {f"loss, {dtype}": losses[0], f"gradient off by, {dtype}": away}
        limit = 1e-4 if given.dry_run else 0.02
        assert abs(losses[0] / losses[1] - 1) < limit and away < limit, f"{losses}, {away}"
    return found


def make_model(given: Given) -> Path:
    """Returns an untrained LLaVA checkpoint of the quickstart's base models."""
    import serving

    folder = given.out / "llava-untrained"
    if not (folder / "config.json").is_file():
        serving.make_checkpoint(folder)
    return folder


def qlora(given: Given) -> Figures:
    """Takes a QLoRA step on a LLaVA checkpoint, loads it in 4 bits and lets it answer."""
    need("bitsandbytes", "peft")
    need_gpu(given)
    import torch

    from llava.model.builder import load_pretrained_model

    model_path, out = make_model(given), given.out / "llava-lora"
    flags = {
        "model_name_or_path": model_path, "output_dir": out, "bits": 4, "lora_enable": True,
        "lora_r": 8, "bf16": True, "max_steps": 1, "per_device_train_batch_size": 4,
        "packing": True, "feature_cache": "off", "mm_projector_lr": 2e-5, "logging_steps": 1,
    }  # fmt: skip
    fine_tune("lrm_finetune.sh", out, flags)
    tokenizer, model, _, _ = load_pretrained_model(
        str(model_path), None, "llava", load_4bit=True, device=given.device
    )
    ids = tokenizer("What is this?", return_tensors="pt").input_ids.to(given.device)
    with torch.no_grad():
        answer = model.generate(ids, do_sample=False, max_new_tokens=4)
    assert answer.shape == (1, 4), f"4 new tokens were expected, found {tuple(answer.shape)}"
    return {"loss": losses_of(out)[0]}


def fine_tune(script: str, out: Path, flags: dict[str, Any]) -> None:
    """Runs a training script of the preset `mini`."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    run(
        ["bash", f"scripts/v1_5/{script}", *words],
        PRESET="mini",
        OUTPUT_DIR=str(out),
        PYTHON=sys.executable,
    )


def losses_of(out: Path) -> list[float]:
    """Returns the losses that a run logged."""
    from llava.files import METRICS_FILE, read_metrics

    losses = [entry["loss"] for entry in read_metrics(out / METRICS_FILE) if "loss" in entry]
    assert losses and all(map(math.isfinite, losses)), f"losses: {losses}"
    return losses


def finetune(given: Given) -> Figures:
    """Runs the quickstart's two stages, a few steps of each; the loss has to fall."""
    need_gpu(given)
    stage_1, stage_2 = given.out / "mini-pretrain", given.out / "mini"
    num_steps = (2, 3) if given.dry_run else (100, 200)
    common = {"feature_cache": "off", "save_strategy": "no"}
    if given.dry_run:
        common |= {"logging_steps": "1", "per_device_train_batch_size": "8"}
    fine_tune("lrm_pretrain.sh", stage_1, {**common, "max_steps": num_steps[0]})
    adapter = {"pretrain_mm_mlp_adapter": stage_1 / "mm_projector.bin", "max_steps": num_steps[1]}
    fine_tune("lrm_finetune.sh", stage_2, {**common, **adapter})
    losses = losses_of(stage_2)
    assert given.dry_run or losses[-1] < losses[0], f"the loss has not fallen: {losses}"
    return {"first loss": losses[0], "last loss": losses[-1]} | speed_of(stage_2)


def speed_of(out: Path) -> Figures:
    """Returns the last logged speed and memory of a run."""
    from llava.files import METRICS_FILE, read_metrics

    wanted = ("tokens_per_second", "tflops_per_device", "mfu", "memory_gib")
    entries = read_metrics(out / METRICS_FILE)
    return {name: entry[name] for entry in entries for name in wanted if name in entry}


def step_7b(given: Given) -> Figures:
    """Measures packed steps of a 7B shape, with as many layers as the GPU's memory holds."""
    need_gpu(given)
    import gpu_step
    import torch

    name, options = "tiny", SimpleNamespace(cpu=True, batch=2, steps=2, max_text=40)
    if not given.dry_run:
        seven = gpu_step.SHAPES["7b"]
        total = torch.cuda.get_device_properties(0).total_memory
        layer = 4 * seven.hidden_size**2 + 3 * seven.hidden_size * seven.intermediate_size
        # 0.7: what is left is for embeddings, the tower and activations
        layers = min(seven.num_layers, int(0.7 * total / (STATE_BYTES * layer)))
        name = f"7b, {layers} of {seven.num_layers} layers"
        gpu_step.SHAPES[name] = seven._replace(num_layers=layers)
        options = SimpleNamespace(cpu=False, batch=8, steps=8, max_text=1400)
    options = SimpleNamespace(**vars(options), shape=name, peak_tflops=None)
    found: Figures = {"shape": name}
    settings = {
        "checkpointed": gpu_step.Setting(checkpoints_every=1),
        "not checkpointed": gpu_step.Setting(checkpoints_every=0),
        "checkpointed, compiled": gpu_step.Setting(checkpoints_every=1, compiles=True),
    }
    losses = []
    for title, setting in settings.items():
        measured = gpu_step.measure(options, setting)
        if measured is None:
            found[title] = "out of memory"
            continue
        losses.append(measured.first_loss)
        found[f"{title}, tokens/s"] = round(measured.tokens_per_s)
        if measured.mfu is not None:
            found[f"{title}, MFU in %"] = 100 * measured.mfu
        if not given.dry_run:
            found[f"{title}, peak GiB"] = measured.peak_gib
        found[f"{title}, lrm plan's GiB"] = measured.planned_gib
    assert losses, "out of memory with all settings"
    assert max(losses) / min(losses) < 1.02, f"the first losses differ: {losses}"
    return found


def evaluation(given: Given) -> Figures:
    """Answers the built-in benchmark in batches, and one question at a time."""
    need_gpu(given)
    import evaluation as bench

    trained = given.out / "mini"
    model = trained if (trained / "config.json").is_file() else make_model(given)
    limit = 1 if given.dry_run else 4
    found = bench.measure_batches(model, argparse.Namespace(limit=limit, batch_size=64, rounds=1))
    # in 16 bits a batch may round otherwise than a single question
    assert found["equal"] or not given.dry_run, "batched answers differ from single ones"
    return {key: found[key] for key in ("name", "ours", "peer", "ratio", "equal")}


def serving_16(given: Given) -> Figures:
    """Lets a worker answer 16 clients at once, and one request at a time."""
    need_gpu(given)
    path = given.out / "serving-figures.json"
    clients, tokens = ("4", "8") if given.dry_run else ("16", "64")
    run([
        sys.executable, "tools/bench/serving.py", "--peers", "one", "--pairs", "1",
        "--clients", clients, "--max-new-tokens", tokens,
        "--model", str(make_model(given)), "--device", given.device, "--json", str(path),
    ])  # fmt: skip
    entries = json.loads(path.read_text(encoding="utf-8"))
    found = {f"{e['name']} ({e['unit']})": e["ours"] for e in entries}
    return found | {"same answers as one at a time": all(e["equal"] for e in entries)}


def vllm(given: Given) -> Figures:
    """Compares vLLM's answers with ours, on an export of a tiny model."""
    if given.vllm_python is None:
        raise CannotRunError("name an interpreter that has vLLM: --vllm-python FILE")
    run([sys.executable, "tools/check_vllm.py", "--vllm-python", given.vllm_python, "llava"])
    return {}


RUNS: dict[str, Callable[[Given], Figures]] = {
    "versions": versions,
    "data": data,
    "attention": attention,
    "liger": liger,
    "qlora": qlora,
    "finetune": finetune,
    "step-7b": step_7b,
    "evaluation": evaluation,
    "serving": serving_16,
    "vllm": vllm,
}


if __name__ == "__main__":
    sys.exit(main())
