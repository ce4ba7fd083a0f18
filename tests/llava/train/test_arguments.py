"""The flags: names and defaults of the contract, old flags, contradictions."""

import dataclasses

import pytest
from transformers.integrations import integration_utils as integrations

from llava.errors import ConfigError
from llava.train import arguments
from llava.train.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    check_surroundings,
    parse_arguments,
)

MODEL = {
    "model_name_or_path": "facebook/opt-125m",
    "version": "v0",
    "freeze_backbone": False,
    "tune_mm_mlp_adapter": False,
    "vision_tower": None,
    "mm_vision_select_layer": -1,
    "pretrain_mm_mlp_adapter": None,
    "mm_projector_type": "linear",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": True,
    "mm_patch_merge_type": "flat",
    "mm_vision_select_feature": "patch",
}
DATA = {
    "data_path": None,
    "lazy_preprocess": False,
    "is_multimodal": False,
    "image_folder": None,
    "image_aspect_ratio": "square",
}
TRAINING = {
    "cache_dir": None,
    "optim": "adamw_torch",
    "remove_unused_columns": False,
    "freeze_mm_mlp_adapter": False,
    "mpt_attn_impl": "triton",
    "model_max_length": 512,
    "double_quant": True,
    "quant_type": "nf4",
    "bits": 16,
    "lora_enable": False,
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_weight_path": "",
    "lora_bias": "none",
    "mm_projector_lr": None,
    "group_by_modality_length": False,
}
# what all recipes of LLaVA 1.5 pass
SHARED = (
    "--model_name_or_path lmsys/vicuna-13b-v1.5 --data_path d.json --image_folder images "
    "--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu "
    "--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False "
    "--bf16 True --output_dir out --num_train_epochs 1 --per_device_eval_batch_size 4 "
    "--gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps "
    "--save_total_limit 1 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine "
    "--logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True "
    "--dataloader_num_workers 4 --lazy_preprocess True --report_to wandb"
)
TUNED = "--image_aspect_ratio pad --group_by_modality_length True --version v1"
PROJECTOR = "--pretrain_mm_mlp_adapter mm_projector.bin"
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5"
RECIPES = {
    "pretrain": "--version plain --tune_mm_mlp_adapter True --per_device_train_batch_size 32 "
    "--save_steps 24000 --learning_rate 1e-3",
    "finetune": f"{TUNED} {PROJECTOR} --per_device_train_batch_size 16 --save_steps 50000 "
    "--learning_rate 2e-5",
    "finetune_lora": f"{LORA} {TUNED} {PROJECTOR} --learning_rate 2e-4",
    "finetune_task": f"{TUNED} --learning_rate 2e-5",
    "finetune_task_lora": f"{LORA} {TUNED} --learning_rate 2e-4",
    "v1 pretrain_xformers": "--version v1 --bf16 False --tf32 False "
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --learning_rate 2e-3",
    "v1 finetune_sqa": "--version llava_llama_2 --num_train_epochs 12 --learning_rate 2e-5",
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(ModelArguments, MODEL), (DataArguments, DATA), (TrainingArguments, TRAINING)],
)
def test_fields_and_defaults(kind, expected):
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert {name: defaults.get(name, "missing") for name in expected} == expected


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_parse(name):
    flags = f"{SHARED} {RECIPES[name]}".split()
    _, data_args, args, _ = parse_arguments(args=flags)
    assert args.warmup_steps == 0.03
    assert args.eval_strategy == "no"
    assert args.gradient_checkpointing
    assert data_args.lazy_preprocess


def parse(*flags):
    return parse_arguments(args=["--output_dir", "out", "--use_cpu", "True", *flags])


def test_tf32_off_a_gpu_is_left_out():
    assert parse("--tf32", "True")[2].tf32 is None


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--evaluation_strategy", "steps", "--eval_steps", "5"), "eval_strategy", "steps"),
        (("--warmup_ratio", "0.1"), "warmup_steps", 0.1),
        (("--warmup_ratio", "0.1", "--warmup_steps", "7"), "warmup_steps", 7),
        (("--group_by_length", "True"), "train_sampling_strategy", "group_by_length"),
        (("--no_cuda", "True"), "use_cpu", True),
        (("--overwrite_output_dir", "True"), "overwrite_output_dir", True),
        (("--save_safetensors", "False"), "save_safetensors", False),
    ],
)
def test_old_flags_are_translated(flags, field, value):
    assert getattr(parse(*flags)[2], field) == value


def test_log_folder_goes_where_tensorboard_looks(monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    parse("--logging_dir", "logs")
    import os

    assert os.environ.pop("TENSORBOARD_LOGGING_DIR") == "logs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--warmup_ratio", "3"), r"\[0, 1\)"),
        (("--bits", "5"), "4, 8, 16"),
        (("--lora_bias", "some"), "none, all, lora_only"),
        (("--quant_type", "int4"), "fp4, nf4"),
        (("--loss_normalization", "x"), "global, micro_batch"),
        (("--tune_mm_mlp_adapter", "True"), "--vision_tower"),
        (("--max_drop_rate", "2"), "max_drop_rate"),
        (
            ("--tune_mm_mlp_adapter", "True", "--lora_enable", "True", "--vision_tower", "t"),
            "exclude each other",
        ),
        (
            ("--tune_mm_mlp_adapter", "True", "--freeze_mm_mlp_adapter", "True"),
            "exclude each other",
        ),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(*flags)


@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("bitsandbytes", ("--bits", "4")),
        ("peft", ("--lora_enable", "True")),
        ("deepspeed", ("--deepspeed", "zero2.json")),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, flags):
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        parse(*flags)


def test_what_cannot_be_recorded_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    def check(output_dir, *flags):
        args = ["--output_dir", str(output_dir), "--use_cpu", "True", *flags]
        check_surroundings(parse_arguments(args=args)[2])

    monkeypatch.setattr(integrations, "is_wandb_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--report_to wandb needs .* pip install wandb"):
        check(tmp_path, "--report_to", "wandb")
    with pytest.raises(ConfigError, match=r"--report_to is 'wnb'; choose from: none, .* wandb"):
        check(tmp_path, "--report_to", "wnb")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "out"):
        with pytest.raises(ConfigError, match=r"cannot be made: .*file is no folder"):
            check(folder, "--report_to", "none")
    check(tmp_path / "a" / "b", "--report_to", "none")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(arguments.os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="is not writable"):
        check(tmp_path / "a" / "b", "--report_to", "none")


def test_every_reporter_of_transformers_can_be_asked_for():
    for name in integrations.INTEGRATION_TO_CALLBACK:
        assert name in arguments._REPORTERS or hasattr(integrations, f"is_{name}_available")


def test_unknown_flags_are_errors(capsys):
    with pytest.raises(ValueError, match="--learning_rat"):
        parse("--learning_rat", "1")
    with pytest.raises(ConfigError, match=r"--learning_rte \(did you mean --learning_rate\?\) 1;"):
        parse("--learning_rte", "1")


def test_further_dataclasses_are_parsed():
    @dataclasses.dataclass
    class Further:
        depth: int = 3

    *_, extra = parse_arguments((Further,), ["--output_dir", "out", "--depth", "4"])
    assert extra == (Further(4),)
