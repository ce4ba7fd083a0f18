"""The training scripts: which command they start, what wins, what they refuse."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEW_BASES = {
    "aya-expanse-8b-siglip2": "CohereLabs/aya-expanse-8b",
    "eurollm-9b-siglip2": "utter-project/EuroLLM-9B-Instruct",
    "gemma3-4b-siglip2": "google/gemma-3-4b-it",
    "qwen3-8b-siglip2": "Qwen/Qwen3-8B",
    "smollm3-3b-siglip2": "HuggingFaceTB/SmolLM3-3B",
}
# of those that share their settings, one
PRESETS = (
    "qwen3-8b-siglip2",
    "qwen3-8b-siglip2-lora",
    "llama2-13b",
    "llama3-8b",
    "mini",
    "smollm2",
    "vicuna-13b-qlora",
    "vicuna-13b",
    "vicuna-7b-lora",
    "vicuna-7b",
)
LLAVA_SCRIPTS = ("pretrain", "finetune", "finetune_lora", "finetune_task")
VARIABLES = (
    "PRESET MODEL_NAME_OR_PATH VISION_TOWER DATA_PATH IMAGE_FOLDER OUTPUT_DIR NUM_GPUS DEEPSPEED "
    "REPORT_TO MIXTURE LANGUAGES NNODES NODE_RANK MASTER_ADDR MASTER_PORT PYTHON VIRTUAL_ENV"
).split()


def run(script: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["bash", f"scripts/v1_5/{script}.sh", *args],
        cwd=ROOT,
        env=env | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def dry_run(script: str, *args: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """The launcher's words and the training flags of a command."""
    result = run(script, *args, "--dry-run", **variables)
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout.replace("\\\n", ""))  # the shell does this, shlex does not
    module = max(i for i, word in enumerate(words) if word == "-m") + 1
    flags: dict[str, str] = {}
    rest = iter(words[module + 1 :])
    for word in rest:
        name, has_value, value = word.partition("=")
        name = name.replace("-", "_").removeprefix("__")
        assert name not in flags, f"{name} is there twice"
        flags[name] = value if has_value else next(rest)
    return words[: module + 1], flags


def of_contract(**changes: str) -> dict[str, str]:
    """The flags that LLaVA v1.5's recipes have in common, and a recipe's own."""
    return {
        "vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": "-2",
        "mm_use_im_start_end": "False",
        "mm_use_im_patch_token": "False",
        "bf16": "True",
        "num_train_epochs": "1",
        "per_device_eval_batch_size": "4",
        "gradient_accumulation_steps": "1",
        "evaluation_strategy": "no",
        "save_strategy": "steps",
        "save_total_limit": "1",
        "weight_decay": "0.",
        "warmup_ratio": "0.03",
        "lr_scheduler_type": "cosine",
        "logging_steps": "1",
        "tf32": "True",
        "model_max_length": "2048",
        "gradient_checkpointing": "True",
        "dataloader_num_workers": "4",
        "lazy_preprocess": "True",
        "report_to": "wandb",
        **changes,
    }


TUNING = {
    "deepspeed": "./scripts/zero3.json",
    "version": "v1",
    "data_path": "./playground/data/llava_v1_5_mix665k.json",
    "image_folder": "./playground/data",
    "image_aspect_ratio": "pad",
    "group_by_modality_length": "True",
    "per_device_train_batch_size": "16",
    "save_steps": "50000",
}
BASE = "lmsys/vicuna-13b-v1.5"
ADAPTER = "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"
RECIPES = {
    "pretrain": of_contract(
        deepspeed="./scripts/zero2.json",
        model_name_or_path=BASE,
        version="plain",
        data_path="./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        image_folder="./playground/data/LLaVA-Pretrain/images",
        tune_mm_mlp_adapter="True",
        per_device_train_batch_size="32",
        learning_rate="1e-3",
        save_steps="24000",
        output_dir="./checkpoints/llava-v1.5-13b-pretrain",
    ),
    "finetune": of_contract(
        **TUNING,
        model_name_or_path=BASE,
        pretrain_mm_mlp_adapter=ADAPTER,
        learning_rate="2e-5",
        output_dir="./checkpoints/llava-v1.5-13b",
    ),
    "finetune_lora": of_contract(
        **TUNING,
        model_name_or_path=BASE,
        pretrain_mm_mlp_adapter=ADAPTER,
        learning_rate="2e-4",
        lora_enable="True",
        lora_r="128",
        lora_alpha="256",
        mm_projector_lr="2e-5",
        output_dir="./checkpoints/llava-v1.5-13b-lora",
    ),
    "finetune_task": of_contract(
        **TUNING,
        model_name_or_path="liuhaotian/llava-v1.5-13b",
        learning_rate="2e-5",
        output_dir="./checkpoints/llava-v1.5-13b-task",
    ),
}


@pytest.mark.parametrize("script", LLAVA_SCRIPTS)
def test_recipes_have_the_flags_of_llava(script: str) -> None:
    launcher, flags = dry_run(script, NUM_GPUS="8")
    assert flags == RECIPES[script]
    assert launcher[-2:] == ["-m", "llava.train.train_mem"]


def test_only_visible_gpus_count(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: NVIDIA; done\n")
    smi.chmod(0o755)
    script = """. scripts/lib/launch.sh
        num_gpus_here
        for CUDA_VISIBLE_DEVICES in 0,2 '' -1 GPU-1a,GPU-2b 0,1,2,3,4,5; do
            printf ' '
            num_gpus_here
        done"""
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["bash", "-euc", script]
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.stdout.split() == ["4", "2", "0", "0", "2", "4"], found.stderr


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_parses(stage: str, preset: str, tmp_path: Path, monkeypatch) -> None:
    from transformers import HfArgumentParser

    from llava.train import arguments
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
    from lrm_ext.training.arguments import LrmArguments

    monkeypatch.setattr(arguments, "_need", lambda *args: None)  # bitsandbytes is for GPUs
    _, flags = dry_run(f"lrm_{stage}", PRESET=preset, NUM_GPUS="0", OUTPUT_DIR=str(tmp_path))
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, LrmArguments))
    model, _, training, lrm = parser.parse_args_into_dataclasses(words)
    assert model.tune_mm_mlp_adapter == (stage == "pretrain")
    assert (model.pretrain_mm_mlp_adapter is None) == (stage == "pretrain")
    assert not training.bf16 and training.use_cpu
    assert Path(lrm.mixture_path) == Path(f"scripts/v1_5/mixtures/{stage}.toml")
    assert (ROOT / lrm.mixture_path).is_file()


@pytest.mark.parametrize(
    ("preset", "version"),
    [
        ("vicuna-7b", "lrm_v1"),
        ("vicuna-13b", "lrm_v1"),
        ("llama2-13b", "lrm_v1"),
        ("llama3-8b", "lrm_llama_3"),
    ],
)
def test_large_presets_have_the_settings_of_the_paper(preset: str, version: str) -> None:
    shared = {
        "version": version,
        "bf16": "True",
        "model_max_length": "2048",
        "lr_scheduler_type": "cosine",
        "warmup_ratio": "0.03",
        "num_train_epochs": "1",
        "vision_tower": "openai/clip-vit-large-patch14-336",
    }
    stages = {
        "pretrain": ("1e-3", "24", "scripts/zero2.json"),
        "finetune": ("2e-5", "32", "scripts/zero3.json"),
    }
    for stage, (rate, batch, zero) in stages.items():
        _, flags = dry_run(f"lrm_{stage}", PRESET=preset, NUM_GPUS="8")
        expected = {
            **shared,
            "learning_rate": rate,
            "per_device_train_batch_size": batch,
            "deepspeed": zero,
        }
        assert {name: flags[name] for name in expected} == expected


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_presets_of_new_bases_have_the_settings_of_llava(stage: str) -> None:
    names = ("learning_rate", "per_device_train_batch_size", "model_max_length", "warmup_ratio",
             "lr_scheduler_type", "weight_decay", "num_train_epochs")  # fmt: skip
    _, flags = dry_run(f"lrm_{stage}", PRESET="qwen3-8b-siglip2", NUM_GPUS="8")
    _, adapters = dry_run(f"lrm_{stage}", PRESET="qwen3-8b-siglip2-lora", NUM_GPUS="1")
    assert {name: flags[name] for name in names} == {n: RECIPES[stage][n] for n in names}
    assert "deepspeed" in flags and "deepspeed" not in adapters
    step = ("per_device_train_batch_size", "gradient_accumulation_steps")
    of_one, of_eight = (int(f[step[0]]) * int(f[step[1]]) for f in (adapters, flags))
    assert of_one == 8 * of_eight
    assert adapters.get("lora_enable") == ("True" if stage == "finetune" else None)


def test_what_presets_of_new_bases_train() -> None:
    folder = "scripts/v1_5/presets"
    show = (
        f"presets_dir={folder}; . {folder}/$0.sh; echo $model $tower $version $samples_of_finetune"
    )
    for preset, model in NEW_BASES.items():
        for name in (preset, f"{preset}-lora"):
            told = subprocess.run(
                ["bash", "-c", show, name], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.split()
            assert told == [model, "google/siglip2-so400m-patch14-384", "auto", "128"], name


@pytest.mark.parametrize("script", ["lrm_finetune", "finetune", "finetune_lora"])
def test_parts_and_rate_of_the_tower_pass_through(script: str) -> None:
    parts = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
    given = ("--mm_tunable_parts", parts, "--mm_vision_tower_lr", "2e-6")
    _, flags = dry_run(script, *given, "--mm_vision_tower_last_layers=4", NUM_GPUS="0")
    assert flags["mm_tunable_parts"] == parts
    assert (flags["mm_vision_tower_lr"], flags["mm_vision_tower_last_layers"]) == ("2e-6", "4")


def test_fine_tuning_goes_on_from_the_projector_of_pre_training() -> None:
    _, first = dry_run("lrm_pretrain", NUM_GPUS="0")
    _, second = dry_run("lrm_finetune", NUM_GPUS="0")
    assert second["pretrain_mm_mlp_adapter"] == f"{first['output_dir']}/mm_projector.bin"
    assert (first["output_dir"], second["output_dir"]) == ("runs/mini-pretrain", "runs/mini")


@pytest.mark.parametrize("script", ["lrm_finetune", "finetune", "finetune_lora"])
def test_a_trained_model_goes_on_from_its_own_projector(script: str, tmp_path: Path) -> None:
    base, trained = tmp_path / "base", tmp_path / "trained"
    for folder, config in ((base, {}), (trained, {"mm_vision_tower": "clip"})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    hub = "liuhaotian/llava-v1.5-7b"
    for model, keeps in ((base, False), (trained, True), ("lmsys/vicuna", False), (hub, True)):
        variables = {"NUM_GPUS": "0", "MODEL_NAME_OR_PATH": str(model)}
        for _, flags in (
            dry_run(script, **variables),
            dry_run(script, "--model_name_or_path", str(model), NUM_GPUS="0"),
        ):
            assert ("pretrain_mm_mlp_adapter" in flags) != keeps, model
        _, flags = dry_run(script, "--pretrain-mm-mlp-adapter=mine.bin", **variables)
        assert flags["pretrain_mm_mlp_adapter"] == "mine.bin"


def test_variables_and_then_the_command_line_win() -> None:
    _, flags = dry_run(
        "lrm_finetune",
        "--learning-rate=5e-5",
        "--report_to",
        "none",
        PRESET="vicuna-7b",
        NUM_GPUS="8",
        MODEL_NAME_OR_PATH="my model",
        VISION_TOWER="tower",
        DATA_PATH="my_corpus",
        IMAGE_FOLDER="images",
        OUTPUT_DIR="out",
        DEEPSPEED="none",
        REPORT_TO="wandb",
    )
    expected = {
        "model_name_or_path": "my model",
        "vision_tower": "tower",
        "corpus_path": "my_corpus",
        "image_folder": "images",
        "output_dir": "out",
        "report_to": "none",
        "learning_rate": "5e-5",
    }
    assert {name: flags[name] for name in expected} == expected
    assert "deepspeed" not in flags


def test_a_mixture_that_names_its_corpora_needs_no_other(tmp_path: Path) -> None:
    mixture = tmp_path / "m.toml"
    mixture.write_text('[[corpora]]\npath = "chats"\n')
    variables = {"PRESET": "vicuna-7b", "NUM_GPUS": "0", "MIXTURE": str(mixture)}
    _, flags = dry_run("lrm_finetune", **variables)
    assert flags["mixture_path"] == str(mixture) and "corpus_path" not in flags
    _, flags = dry_run("lrm_finetune", DATA_PATH="other", **variables)
    assert flags["corpus_path"] == "other"


@pytest.mark.parametrize("preset", PRESETS)
def test_llava_json_trains_without_a_mixture(preset: str) -> None:
    _, flags = dry_run("lrm_finetune", PRESET=preset, NUM_GPUS="0", DATA_PATH="a/data.json")
    assert flags["data_path"] == "a/data.json"
    assert "corpus_path" not in flags and "mixture_path" not in flags
    assert flags.get("feature_cache", "off") in ("off", "auto")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("preset", ["mini", "smollm2"])
def test_other_data_is_trained_by_epochs(preset: str, stage: str, tmp_path: Path) -> None:
    variables = {"PRESET": preset, "NUM_GPUS": "0"}
    _, flags = dry_run(f"lrm_{stage}", **variables)
    assert "max_steps" in flags
    for data in ("my.json", "my_corpus", ""):
        _, flags = dry_run(f"lrm_{stage}", **variables, DATA_PATH=data)
        assert ("max_steps" in flags) == (not data) and flags["num_train_epochs"] == "1"
    chosen = f"playground/data/emoji_scenes/corpus/chosen/en-sw/{stage}"
    _, flags = dry_run(f"lrm_{stage}", **variables, DATA_PATH=chosen, LANGUAGES="en,sw")
    assert flags["languages"] == "en,sw" and "max_steps" in flags
    (tmp_path / "m.toml").write_text('[[corpora]]\npath = "chats"\n')
    _, flags = dry_run(f"lrm_{stage}", **variables, MIXTURE=str(tmp_path / "m.toml"))
    assert "max_steps" not in flags
    _, flags = dry_run(f"lrm_{stage}", "--max_steps", "3", **variables, DATA_PATH="my.json")
    assert flags["max_steps"] == "3"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NUM_GPUS": "0"}, []),
        ({"NUM_GPUS": "8"}, ["--nproc_per_node", "8", "--standalone"]),
        (
            {"NUM_GPUS": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"},
            "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 "
            "--master_port 29500".split(),
        ),
    ],
)
def test_one_process_on_a_cpu_else_torchrun(variables: dict, words: list[str]) -> None:
    launcher, flags = dry_run("lrm_finetune", PRESET="vicuna-13b", **variables)
    run_by = ["-m", "torch.distributed.run"] if words else []
    assert launcher[1:] == [*run_by, *words, "-m", "lrm_ext.training.train"]
    assert ("use_cpu" in flags) == (variables["NUM_GPUS"] == "0")


@pytest.mark.parametrize("preset", ["vicuna-13b", "llama3-8b", "vicuna-7b-lora", "mini"])
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (4, 2), (8, 1), (8, 4), (0, 2)])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_step_has_as_many_samples_on_any_machine(
    preset: str, stage: str, gpus: int, nodes: int
) -> None:
    variables = {"NUM_GPUS": str(gpus), "NNODES": str(nodes), "NODE_RANK": "0"}
    _, flags = dry_run(f"lrm_{stage}", PRESET=preset, MASTER_ADDR="a", **variables)
    samples = 32 if preset == "mini" else {"pretrain": 192, "finetune": 256}[stage]
    batch = int(flags["per_device_train_batch_size"])
    processes = nodes * max(gpus, 1)
    assert batch * int(flags["gradient_accumulation_steps"]) * processes == samples


def test_who_chooses_the_batch_is_told_what_a_step_has() -> None:
    args = ("--per_device_train_batch_size", "4", "--dry-run")
    result = run("lrm_finetune", *args, PRESET="vicuna-13b", NUM_GPUS="3")
    stated = "Samples per step: 12 (processes: 3, batch: 4, gradient accumulation: 1)"
    assert stated in result.stderr
    result = run("lrm_finetune", "--dry-run", PRESET="vicuna-13b", NUM_GPUS="3")
    assert result.returncode == 2 and "256 samples cannot be dealt evenly to 3" in result.stderr


@pytest.mark.parametrize("script", ["lrm_finetune", "finetune"])
def test_a_dry_run_names_what_is_missing(script: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    variables = {"DATA_PATH": "no.json", "IMAGE_FOLDER": "no_images", "PRESET": "vicuna-7b-lora"}
    args = ("--dry-run", "--deepspeed", "scripts/zero2.json", "--bits", "4")
    result = run(script, *args, "--lora_enable", "True", PYTHON=str(python), **variables)
    assert result.returncode == 0 and "--data_path no.json" in result.stdout
    for word in ("no.json (DATA_PATH)", "no_images (IMAGE_FOLDER)", "run stage 1 first"):
        assert word in result.stderr
    for package, extra in (("deepspeed", "train"), ("peft", "train"), ("bitsandbytes", "gpu")):
        assert f"{package}, which is not installed: bash scripts/setup.sh --extras {extra}" in (
            result.stderr
        )


def test_the_slurm_script_starts_a_launcher_on_each_machine(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    srun = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=1 exec "$@"\n'
    (tmp_path / "srun").write_text(srun)
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "20003"}
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env |= {**job, "PATH": f"{tmp_path}:{env['PATH']}", "PRESET": "vicuna-13b", "NUM_GPUS": "8"}
    command = ["bash", "scripts/v1_5/lrm_train.sbatch", "--dry-run", "--save_steps", "7"]
    for stage in ("pretrain", "finetune"):
        result = subprocess.run(
            command, cwd=ROOT, env=env | {"STAGE": stage}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        words = " ".join(shlex.split(result.stdout.replace("\\\n", "")))
        launcher = "--nnodes 2 --node_rank 1 --master_addr node7 --master_port 20003"
        assert f"--nproc_per_node 8 {launcher} -m lrm_ext.training.train" in words
        assert "--save_steps 7" in words and (stage == "pretrain") == ("tune_mm_mlp" in words)


@pytest.mark.parametrize(
    ("args", "variables", "message"),
    [
        ([], {"PRESET": "nonsense"}, "choose from: aya-expanse-8b-siglip2"),
        ([], {"PRESET": "../presets/mini"}, "choose from"),
        ([], {"NUM_GPUS": "many"}, "NUM_GPUS"),
        ([], {"NNODES": "2", "NUM_GPUS": "8"}, "MASTER_ADDR"),
        ([], {"NNODES": "2", "NUM_GPUS": "0"}, "MASTER_ADDR"),
        ([], {"NNODES": "two", "NUM_GPUS": "8"}, "NNODES"),
        (["learning_rate", "1e-3"], {}, "learning_rate"),
    ],
)
def test_what_cannot_be_meant_is_refused(args: list[str], variables: dict, message: str) -> None:
    result = run("lrm_pretrain", "--dry-run", *args, **variables)
    assert result.returncode == 2
    assert message in result.stderr and not result.stdout


def test_what_is_missing_is_said_before_python_starts(tmp_path: Path) -> None:
    variables = {"PRESET": "vicuna-7b", "NUM_GPUS": "0", "PYTHON": shutil.which("false") or "false"}
    result = run("lrm_pretrain", DATA_PATH=str(tmp_path), **variables)
    assert result.returncode == 2 and "no corpus" in result.stderr
    (tmp_path / "corpus.toml").touch()
    result = run("lrm_finetune", DATA_PATH=str(tmp_path), **variables)
    assert result.returncode == 2 and "lrm_pretrain.sh" in result.stderr


@pytest.mark.parametrize(("name", "command"), [("smollm2", "get_smollm2.py"), ("m", "build-base")])
def test_a_base_that_is_not_there_is_named_with_what_makes_it(name: str, command: str) -> None:
    # no folder of the repository is moved for the test: nothing of this name is fetched in a clone
    if (ROOT / "playground/models" / name).exists():
        pytest.skip(f"playground/models/{name} is there")
    result = run(
        "lrm_pretrain", "--dry-run", MODEL_NAME_OR_PATH=f"playground/models/{name}", NUM_GPUS="0"
    )
    assert f"playground/models/{name} is not there" in result.stderr
    assert command in result.stderr


@pytest.mark.parametrize("script", ["lrm_pretrain", "pretrain", "lrm_eval", "eval/mme"])
def test_a_python_without_the_packages_is_named(tmp_path: Path, script: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    python.chmod(0o755)
    (tmp_path / "data.json").touch()
    data = {"DATA_PATH": str(tmp_path / "data.json"), "IMAGE_FOLDER": str(tmp_path)}
    result = run(script, PYTHON=str(python), NUM_GPUS="0", **data)
    assert result.returncode == 2 and not result.stdout.strip()
    *said, line = result.stderr.splitlines()
    assert [text[:16] for text in said] in ([], ["Samples per step"])
    assert f"{python} lacks the packages of this project" in line and "setup.sh" in line
    if script != "eval/mme":  # a dry run needs none
        assert run(script, "--dry-run", PYTHON=str(python), NUM_GPUS="0").returncode == 0


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeed_configurations(name: str, stage: int) -> None:
    config = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["overlap_comm"] and zero["contiguous_gradients"]
    assert config["train_batch_size"] == config["bf16"]["enabled"] == "auto"
    assert stage == 2 or zero["stage3_gather_16bit_weights_on_model_save"]
