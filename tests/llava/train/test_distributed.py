"""Two processes learn what one process learns, on CPUs: DDP, ZeRO-2, ZeRO-3, offload, FSDP2."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.conversation import get_conversation
from llava.data.batching import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.builder import read_tensors
from llava.train.arguments import DataArguments
from llava.train.train import train

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
NUM_STEPS = 20
SAVED_STEP = 10
BATCH_SIZE = 4  # of all ranks together

MODES = {
    "ddp": {},
    "zero2": {"deepspeed": ROOT / "scripts" / "zero2.json"},
    "zero3": {"deepspeed": ROOT / "scripts" / "zero3.json"},
    "zero3_offload": {"deepspeed": ROOT / "scripts" / "zero3_offload.json"},
    "fsdp2": {"fsdp": "full_shard", "fsdp_config": ROOT / "scripts" / "fsdp2.json"},
}
PROJECTOR = {"tune_mm_mlp_adapter": True}
TOWER = {
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_tower_lr": 5e-4,
}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def mixed_data(tiny_data, tmp_path_factory):
    """By turns two samples with pictures and two without: the second rank sees text only."""
    records = json.loads((tiny_data / "data.json").read_text())
    with_image = [record for record in records if "image" in record]
    text_only = [record for record in records if "image" not in record]
    order = []
    for start in range(0, len(with_image), 2):
        order += [*with_image[start : start + 2], *(text_only * 4)[start : start + 2]]
    path = tmp_path_factory.mktemp("mixed") / "mixed.json"
    path.write_text(json.dumps(order))
    return path


@pytest.fixture(scope="module")
def projector(tmp_path_factory):
    """The same start for all: ZeRO-3 draws other random numbers while it loads a model."""
    torch.manual_seed(0)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {f"model.mm_projector.{k}": 0.1 * torch.randn(v) for k, v in shapes.items()}
    path = tmp_path_factory.mktemp("start") / "start.bin"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def settings(mixed_data, projector):
    """Flags that all runs have in common: four samples a step."""
    return {
        "data_path": mixed_data,
        "pretrain_mm_mlp_adapter": projector,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "max_steps": NUM_STEPS,
        "save_steps": SAVED_STEP,
        "bf16": False,
    }


@pytest.fixture(scope="module")
def one_process(make_flags, settings, tmp_path_factory):
    """Folder of a run by one process: `one_process()`, or `one_process(lora_enable=True, ...)`."""
    runs = {}

    def run(**stage):
        key = json.dumps(stage, sort_keys=True, default=str)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("one")
            batch = {"output_dir": runs[key], "per_device_train_batch_size": BATCH_SIZE}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["train", *make_flags(**{**settings, **stage, **batch})])
                train()
        return runs[key]

    return run


@pytest.fixture
def two_ranks(make_flags, settings, tmp_path):
    """Train on two ranks: `two_ranks("zero3")`; returns the folder of the run."""

    def run(mode, **changes):
        if "deepspeed" in MODES[mode]:
            pytest.importorskip("deepspeed")
        if mode == "zero3_offload" and shutil.which("c++") is None:
            pytest.skip("DeepSpeed compiles its Adam for CPUs, and there is no C++ compiler")
        batch = {"output_dir": tmp_path, "per_device_train_batch_size": BATCH_SIZE // 2}
        said = launch(2, make_flags(**{**settings, **MODES[mode], **batch, **changes}))
        (tmp_path / "stderr.txt").write_text(said)
        return tmp_path

    return run


def launch(num_ranks, flags):
    """Train in processes of their own; returns what they wrote to standard error.

    Raises:
        AssertionError: With what they wrote to standard error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = ["--nproc_per_node", str(num_ranks), "--master_port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *ranks, "-m", "llava.train.train", *flags],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as torchrun:
        try:
            _, stderr = torchrun.communicate(timeout=280)
        finally:
            if torchrun.poll() is None:  # ranks that wait for each other outlive their launcher
                os.killpg(torchrun.pid, signal.SIGKILL)
    assert torchrun.returncode == 0, stderr[-4000:]
    return stderr


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def load(folder, base=None):
    """Tokenizer, model and image processor of a saved run, in one process."""
    name = "llava" if base is None else "llava-lora"
    return load_pretrained_model(str(folder), base and str(base), name, device="cpu")[:3]


def answer(folder, tiny_data, base=None):
    """Sixteen tokens that a saved model writes about a picture."""
    tokenizer, model, processor = load(folder, base)
    prompt = "USER: <image>\nWhich colour is it? ASSISTANT:"
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0)
    with Image.open(tiny_data / "images" / "0.png") as picture:
        images = process_images([picture], processor, model.config)
    return model.generate(ids, images=images, do_sample=False, max_new_tokens=16)[0].tolist()


def loss_after(folder, num_steps, data_path, image_folder, base):
    """The loss that a saved model has on the batch after its last step."""
    tokenizer, model, processor = load(folder, base)
    data_args = DataArguments(
        is_multimodal=True, image_folder=str(image_folder), image_aspect_ratio="pad"
    )
    data_args.image_processor, data_args.mm_use_im_start_end = processor, False
    conversation = get_conversation("v1")
    dataset = LazySupervisedDataset(data_path, tokenizer, data_args, conversation=conversation)
    start = num_steps * BATCH_SIZE % len(dataset)
    batch = DataCollatorForSupervisedDataset(tokenizer)(
        [dataset[index] for index in range(start, start + BATCH_SIZE)]
    )
    with torch.inference_mode():
        return model(**{k: v for k, v in batch.items() if k != "sample_ids"}).loss.item()


def check_close(left, right, tolerance):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=tolerance), key


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_learn_what_one_process_learns(mode, one_process, two_ranks, tiny_data):
    one = one_process()
    two = two_ranks(mode)
    assert len(losses(two)) == NUM_STEPS
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
    if mode == "fsdp2":  # hides the frozen tower, as in LLaVA: the checkpoint only names it
        left = {key: value for key, value in left.items() if "vision_tower" not in key}
    check_close(left, right, 1e-4)
    assert answer(two, tiny_data) == answer(one, tiny_data)

    # a run that was killed after its first checkpoint goes on, with half the memory
    for path in two.iterdir():
        if path.is_file():
            path.unlink()
    (two / f"checkpoint-{NUM_STEPS}").rename(two / "gone")
    two_ranks(mode, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert f"going on from {two / f'checkpoint-{SAVED_STEP}'}" in (two / "stderr.txt").read_text()
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    check_close(right, load_file(two / "model.safetensors"), 1e-4)


@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_the_projector_stage(mode, one_process, two_ranks, tiny_data, tiny_llm):
    one = one_process(**PROJECTOR)
    two = two_ranks(mode, **PROJECTOR)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    check_close(*(read_tensors(folder / "mm_projector.bin") for folder in (one, two)), 1e-4)
    assert not (two / "model.safetensors").exists()
    assert answer(two, tiny_data, tiny_llm) == answer(one, tiny_data, tiny_llm)


@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_lora(mode, one_process, two_ranks, mixed_data, tiny_data, tiny_llm):
    pytest.importorskip("peft")
    one = one_process(**LORA)
    two = two_ranks(mode, **LORA)
    assert losses(two)[0] == pytest.approx(losses(one)[0], abs=1e-4)
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        before, after = read_tensors(one / name), read_tensors(two / name)
        assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    if mode != "zero3":  # adapters begin at random, and ZeRO-3 draws other numbers
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)
        assert answer(two, tiny_data, tiny_llm) == answer(one, tiny_data, tiny_llm)
    saved = two / f"checkpoint-{SAVED_STEP}"
    again = loss_after(saved, SAVED_STEP, mixed_data, tiny_data / "images", tiny_llm)
    assert again == pytest.approx(losses(two)[SAVED_STEP], abs=1e-4)


def test_lora_on_experts_under_zero3(make_base, two_ranks, mixed_data, tiny_data):
    """What is merged from a checkpoint has the loss of the run's next step."""
    base = make_base("qwen3_moe")
    stage = {**LORA, "lora_experts": True, "max_steps": 4, "save_steps": 2}
    two = two_ranks("zero3", model_name_or_path=base, **stage)
    assert any("experts" in name for name in load_file(two / "adapter_model.safetensors"))
    again = loss_after(two / "checkpoint-2", 2, mixed_data, tiny_data / "images", base)
    assert again == pytest.approx(losses(two)[2], abs=1e-4)


@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_trained_tower(mode, one_process, two_ranks, tiny_data):
    one = one_process(**TOWER)
    two = two_ranks(mode, **TOWER)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
    check_close(left, right, 1e-4)
    assert answer(two, tiny_data) == answer(one, tiny_data)

    # the same ranks go on from a checkpoint, and end exactly where they would have ended
    (two / f"checkpoint-{NUM_STEPS}").rename(two / "gone")
    for path in two.iterdir():
        if path.is_file():
            path.unlink()
    two_ranks(mode, **TOWER)
    assert f"going on from {two / f'checkpoint-{SAVED_STEP}'}" in (two / "stderr.txt").read_text()
    check_close(right, load_file(two / "model.safetensors"), 0.0)


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
@pytest.mark.parametrize(
    "stage",
    [
        # no group of the optimizer has parameters but the tower's; a text-only rank has none
        {"mm_tunable_parts": "mm_vision_tower", "mm_vision_tower_lr": 5e-4},
        {**TOWER, "mm_vision_tower_last_layers": 1, "gradient_checkpointing": True},
    ],
    ids=["tower", "last layer"],
)
def test_parts_of_a_tower(mode, stage, one_process, two_ranks):
    one, two = one_process(**stage), two_ranks(mode, **stage)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    check_close(*(load_file(folder / "model.safetensors") for folder in (one, two)), 1e-4)


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_lora_on_the_tower(mode, one_process, two_ranks, mixed_data, tiny_data, tiny_llm):
    pytest.importorskip("peft")
    one, two = (run(**LORA, **TOWER) for run in (one_process, functools.partial(two_ranks, mode)))
    before, after = (read_tensors(folder / "adapter_model.safetensors") for folder in (one, two))
    assert any("vision_tower" in name for name in after)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    if mode != "zero3":  # see `test_lora`
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    saved = two / f"checkpoint-{SAVED_STEP}"
    again = loss_after(saved, SAVED_STEP, mixed_data, tiny_data / "images", tiny_llm)
    assert again == pytest.approx(losses(two)[SAVED_STEP], abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("zero3", "qwen3"), ("zero3", "gemma3_text"), ("fsdp2", "gemma2"), ("fsdp2", "qwen3_moe")],
)
def test_other_families(mode, name, make_base, one_process, two_ranks, tiny_data):
    """Their first losses, because rounding grows from step to step."""
    stage = {"model_name_or_path": make_base(name), "max_steps": 4, "save_steps": 4}
    one, two = one_process(**stage), two_ranks(mode, **stage)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
    if mode == "fsdp2":
        left = {key: value for key, value in left.items() if "vision_tower" not in key}
    check_close(left, right, 1e-4)
    assert answer(two, tiny_data) == answer(one, tiny_data)
