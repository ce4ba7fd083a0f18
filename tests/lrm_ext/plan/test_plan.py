"""Plans: against parameters that transformers counts, and against published runs."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError
from llava.train.flops import (
    ADAPTERS,
    ALL,
    PROJECTOR,
    LanguageModelShape,
    ModelShape,
    TowerTuning,
    get_gpu,
    gpus,
    peak_tflops_of,
)
from lrm_ext.cli import app
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.plan.memory import (
    FILL_LIMIT,
    StageSettings,
    estimate_memory,
    largest_batch,
    num_trained,
)
from lrm_ext.plan.plan import GIB, Wishes, make_plan, measure_data, settings_of
from lrm_ext.plan.presets import ROOT, list_presets, load_shape, stage_flags

TOWER = "openai/clip-vit-large-patch14-336"
MPT_7B = ModelShape(
    LanguageModelShape.from_config(
        {"model_type": "mpt", "vocab_size": 50432, "d_model": 4096, "n_layers": 32, "n_heads": 32},
        "MPT-7B",
    ),
    None,
)


def command(*args):
    return CliRunner().invoke(app, ["plan", *map(str, args)], env={"COLUMNS": "120"})


@pytest.mark.parametrize(
    "name",
    ["lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5", "meta-llama/Meta-Llama-3-8B-Instruct"],
)
def test_parameters_are_those_that_transformers_counts(name):
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    shape = load_shape(name, TOWER)
    model = shape.language_model
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        counted = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
        in_tower = sum(p.numel() for p in CLIPVisionModel(vision).parameters())
    assert model.num_parameters == counted
    assert shape.tower.num_parameters == in_tower
    assert shape.num_image_tokens == 576


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen3-8B", 8.19),
        ("google/gemma-3-4b-it", 3.88),
        ("utter-project/EuroLLM-9B-Instruct", 9.15),
        ("CohereLabs/aya-expanse-8b", 8.03),
        ("HuggingFaceTB/SmolLM3-3B", 3.08),
    ],
)
def test_parameters_are_those_that_were_published(name, published):
    shape = load_shape(name, "google/siglip2-so400m-patch14-384")
    assert round(shape.language_model.num_parameters / 1e9, 2) == published
    assert round(shape.tower.num_parameters / 1e6) == 428
    assert shape.num_image_tokens == 729


def test_what_the_papers_hours_imply():
    """2.4 M samples twice, 192 and 256 a step, 8 x A800: PERFORMANCE's own sums give 17 to 29 %."""
    plan = make_plan("vicuna-13b", 8, "a800-80g", Wishes(hours=144))
    pretrain, finetune = plan.stages
    assert (pretrain.settings.samples_a_step, finetune.settings.samples_a_step) == (192, 256)
    assert (pretrain.data.num_samples, finetune.data.num_samples) == (2_400_000, 2_400_000)
    assert (pretrain.settings.zero_stage, finetune.settings.zero_stage) == (2, 3)
    assert plan.implied.samples_per_second == pytest.approx(4.8e6 / (144 * 3600))
    assert plan.implied.mfu == pytest.approx(0.20, abs=0.01)
    limit = FILL_LIMIT * plan.gpu.memory_gib * GIB
    assert all(stage.memory.total < limit for stage in plan.stages)
    # the share of the peak and the hours are each other's inverse
    again = make_plan("vicuna-13b", 8, "a800-80g", Wishes(mfu=plan.implied.mfu))
    assert again.hours == pytest.approx(144)


@pytest.mark.parametrize(
    ("tokens_per_second", "num_positions", "gpu", "published"),
    [
        (4641, 2048, "a100-80g", 0.642),  # LLM Foundry, MPT-7B on 8 A100, no checkpointing
        (3684, 4096, "a100-80g", 0.548),  # the same with checkpointing, longer samples
        (10643, 2048, "h100-80g", 0.464),  # the same on 8 H100
    ],
)
def test_mfu_of_published_runs(tokens_per_second, num_positions, gpu, published):
    """LLM Foundry counts attention without its mask, which is a few per cent."""
    flops = MPT_7B.sample_flops(num_positions, num_positions)
    counted = flops.total + flops.attention
    mfu = tokens_per_second / num_positions * counted / (gpus()[gpu].peak_tflops * 1e12)
    assert mfu == pytest.approx(published, rel=0.02)


def test_published_hours_of_llavas_first_stage():
    """LLaVA-1.5 13B: 558k samples in 5.5 h on 8 A100, at FlagPerf's 38 % for this very stage."""
    shape = load_shape("lmsys/vicuna-13b-v1.5", TOWER)
    flops = shape.sample_flops(600, 600, PROJECTOR).total
    hours = 558_000 * flops / (8 * get_gpu("a100-80g").peak_tflops * 1e12 * 0.38) / 3600
    assert hours == pytest.approx(5.5, rel=0.1)


def foundry(batch_size, num_gpus, checkpointing):
    return StageSettings(
        trained=ALL,
        batch_size=batch_size,
        num_gpus=num_gpus,
        zero_stage=3,
        checkpointing=checkpointing,
        selects_logits=False,
    )


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "checkpointing", "used"),
    [("a100-40g", 8, True, 12), ("a100-40g", 128, True, 18), ("a100-80g", 8, False, 6)],
)
def test_batches_of_published_runs_fit_and_are_near_the_largest(gpu, num_gpus, checkpointing, used):
    """LLM Foundry, MPT-7B at 2048 tokens; the batches are the largest that it recommends."""
    settings = foundry(used, num_gpus, checkpointing)
    memory = gpus()[gpu].memory_gib * GIB
    largest = largest_batch(MPT_7B, settings, 2048, 2048, memory)
    assert 0.75 * used <= largest <= 1.4 * used


def test_memory_of_a_published_run():
    """torchtitan, Llama 3.1 8B, 4 samples of 8192, all checkpointed, 8 H100: 83.9 GiB."""
    shape = ModelShape(load_shape("meta-llama/Meta-Llama-3-8B-Instruct", None).language_model, None)
    settings = foundry(4, 8, True)
    memory = estimate_memory(shape, settings, 8192, 8192)
    # what is reserved beyond what is counted is what FILL_LIMIT is for
    assert FILL_LIMIT * 0.95 <= memory.total / (83.9 * GIB) <= 1.0


def test_what_others_do_and_cannot_do():
    """LLaVA's README: 13B with 16 samples on 80 GB, 7B on 40 GB; nobody fits 13B on one card."""
    limit = FILL_LIMIT * 80 * GIB
    shape = load_shape("lmsys/vicuna-13b-v1.5", TOWER)
    settings = StageSettings(ALL, 16, num_gpus=8, zero_stage=3, checkpointing=True)
    assert estimate_memory(shape, settings, 1000, 300).total < limit
    alone = StageSettings(ALL, 1, num_gpus=1, checkpointing=True)
    assert estimate_memory(shape, alone, 1000, 300).total > 2 * limit


LORA = [name for name in list_presets() if name.endswith("lora")]


@pytest.mark.parametrize("preset", LORA)
def test_presets_for_one_gpu_of_24_gb_fit_it(preset):
    plan = make_plan(preset, 1, "rtx-4090")
    limit = FILL_LIMIT * plan.gpu.memory_gib * GIB
    # 22 GiB are left of 24 where memory corrects errors: there not all samples may be longest
    limit_with_ecc = FILL_LIMIT * gpus()["l4-24g"].memory_gib * GIB
    for stage in plan.stages:
        assert stage.memory_at_limit.total <= limit
        assert stage.memory.total <= limit_with_ecc
    samples = [256, 128] if "siglip2" in preset else [192, 256]
    assert [stage.settings.samples_a_step for stage in plan.stages] == samples
    assert plan.stages[1].settings.trained == ADAPTERS


def test_flags_on_the_command_line_win():
    flags = stage_flags("vicuna-7b", "finetune", 8, ("--per_device_train_batch_size", "4"))
    assert flags["per_device_train_batch_size"] == "4"
    result = command("--preset", "vicuna-7b", "--", "--per_device_train_batch_size", "4")
    assert result.exit_code == 0, result.output
    assert "4 x 1 x 8 = 32" in result.output


def test_the_documented_plan_is_what_the_command_prints():
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    line, _, rest = document.partition("$ lrm plan ")[2].partition("\n")
    result = CliRunner().invoke(app, ["plan", *line.split()], env={"COLUMNS": "100"})
    printed = "\n".join(text.rstrip() for text in result.output.splitlines())
    assert rest.partition("```")[0].strip() == printed.strip()


def test_samples_and_lengths_are_measured_where_the_corpus_is(tmp_path):
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A cat."))
    native = (Turn("human", "<image>\nŠto je to?"), Turn("gpt", "Mačka."))
    with CorpusWriter(tmp_path / "small", ("hr",), image_root="..") as writer:
        for i in range(10):
            row = CorpusRow(f"r{i}", "a.png", "made up", "naming", True, turns)
            writer.append(row, {"hr": native})
    (tmp_path / "mixture.toml").write_text("non_english_ratio = 1.0\n")
    extra = ("--corpus_path", tmp_path / "small", "--mixture_path", tmp_path / "mixture.toml")
    plan = make_plan("mini", 0, None, extra=(*map(str, extra), "--max_steps", "-1"))
    data = plan.stages[1].data
    assert data.num_samples == 20
    assert 16 + 5 < data.num_positions < 16 + 80
    assert 0 < data.num_supervised < data.num_positions - 16
    assert data.source_of_lengths.startswith("20 samples of ")


@pytest.mark.parametrize("preset", sorted({*list_presets()} - {*LORA}))
def test_every_preset_can_be_planned(preset):
    plan = make_plan(preset, 8, "h100-80g")
    limit = FILL_LIMIT * plan.gpu.memory_gib * GIB
    assert all(stage.hours > 0 and 0 < stage.memory.total < limit for stage in plan.stages)


def test_json_and_table_say_the_same():
    args = ("--preset", "vicuna-13b", "--samples", 1000, "--price", 2)
    plan = json.loads(command(*args, "--json").output)
    assert plan["cost"] == pytest.approx(plan["hours"] * 8 * 2)
    assert plan["stages"][0]["steps"] == 6
    table = command(*args).output
    assert f"{plan['stages'][1]['memory']['total'] / GIB:.1f}" in table
    assert "money at 2 a GPU and hour" in table


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--preset", "vicuna"), "choose from: .*vicuna-13b"),
        (("--gpu", "a800"), "choose from: .*a800-80g"),
        (("--gpus", 0, "--hours", 3), "--gpus above 0"),
        (("--mfu", 40), "share in"),
    ],
)
def test_what_is_not_known_lists_the_choices(args, said):
    result = command(*args)
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=said):
        raise result.exception


def test_gpus_are_found_by_cudas_names():
    assert peak_tflops_of("NVIDIA A100-SXM4-80GB") == 312
    assert peak_tflops_of("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops_of("NVIDIA H100 PCIe") == 756
    assert peak_tflops_of("NVIDIA A10") == 125
    assert peak_tflops_of("Quadro") is None


def test_adapters_take_less_than_the_whole():
    shape = load_shape("lmsys/vicuna-7b-v1.5", TOWER)
    sizes = [
        estimate_memory(
            shape, StageSettings(t, 4, checkpointing=True, lora_rank=64, bits=b), 900, 300
        )
        for t, b in ((ALL, 16), (ADAPTERS, 16), (ADAPTERS, 4))
    ]
    assert sizes[0].total > 2 * sizes[1].total > 2 * sizes[2].total


PARTS = ("--mm_tunable_parts", "mm_vision_tower,mm_mlp_adapter,mm_language_model")


def test_a_trained_tower_is_counted():
    before = make_plan("vicuna-7b", 8, "a100-80g")
    after = make_plan("vicuna-7b", 8, "a100-80g", extra=PARTS)
    last = make_plan("vicuna-7b", 8, "a100-80g", extra=(*PARTS, "--mm_vision_tower_last_layers=4"))
    # the first stage keeps its own parts: the flags of a command are those of both stages
    assert before.stages[0] == after.stages[0]
    one, all_layers, some = (plan.stages[1] for plan in (before, after, last))
    assert one.flops.tower < some.flops.tower < all_layers.flops.tower
    # every layer that is run: forward, and twice as much backward
    assert all_layers.flops.tower == pytest.approx(3 * one.flops.tower, rel=0.01)
    assert one.memory.total < some.memory.total < all_layers.memory.total
    assert num_trained(after.shape, all_layers.settings) - num_trained(
        before.shape, one.settings
    ) == after.shape.tower.num_tuned(TowerTuning())


def test_the_table_names_the_towers_share():
    result = command("--preset", "vicuna-7b", "--", *PARTS)
    assert result.exit_code == 0, result.output
    (row,) = (line for line in result.output.splitlines() if "of them in the vision" in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["0", "290.91 M"]
    assert "of them in the vision" not in command("--preset", "vicuna-7b").output


def test_adapters_of_the_tower():
    shape = load_shape("lmsys/vicuna-7b-v1.5", TOWER)
    tower = shape.tower
    # rank x (inputs + outputs) of four square layers and of the two of the MLP, in 23 layers
    assert tower.num_tuned(TowerTuning(None, 8)) == 23 * 8 * (4 * 2048 + 2 * 5120)
    settings = StageSettings(ADAPTERS, 4, lora_rank=8, tower_tuning=TowerTuning(None, 8))
    adapters = shape.language_model.num_in_adapters(8) + tower.num_tuned(TowerTuning(None, 8))
    assert num_trained(shape, settings) == adapters + shape.num_in_projector


def test_adapters_of_experts_are_counted():
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
             "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}  # fmt: skip
    model = LanguageModelShape.from_config({"model_type": "qwen3_moe", **sizes}, "a test")
    shape = replace(MPT_7B, language_model=model)
    flags = {"lora_enable": "True", "lora_r": "8", "gradient_checkpointing": "True"}
    without, adapted = (settings_of({**flags, "lora_experts": on}, 1) for on in ("False", "True"))
    # rank x experts x (inputs + outputs) of the two tensors of a layer
    added = num_trained(shape, adapted) - num_trained(shape, without)
    assert added == 2 * 8 * 4 * ((32 + 2 * 16) + (16 + 32))
    more = (
        estimate_memory(shape, adapted, 90, 30).total
        - estimate_memory(shape, without, 90, 30).total
    )
    # float32 adapters, gradients and two states; weights of a layer's experts and their gradients
    assert more == pytest.approx(added * 16 + 2 * 4 * 3 * 32 * 16 * without.compute_bytes)


def test_a_cache_of_features_is_not_planned_for_a_trained_tower():
    assert settings_of({"feature_cache": "auto"}, 1).caches_features
    assert not settings_of(
        {"feature_cache": "auto", "mm_tunable_parts": PARTS[1]}, 1
    ).caches_features


def test_videos_are_counted():
    flags = ("--video_frames", "8", "--mm_spatial_pool_stride", "2", "--model_max_length")
    with pytest.raises(ConfigError, match="8 frames takes 1,152 positions.*is 1,152"):
        make_plan("vicuna-7b", 8, "a100-80g", extra=(*flags, "1152"))
    images = make_plan("vicuna-7b", 8, "a100-80g").stages[0]
    videos = make_plan("vicuna-7b", 8, "a100-80g", extra=(*flags, "2048")).stages[0]
    # of the 24 x 24 positions of a frame 12 x 12 are left
    assert videos.data.num_positions - images.data.num_positions == 8 * 144 - 576
    assert "a video of 8 frames in each sample" in videos.data.source_of_lengths
    assert videos.flops.tower == 8 * images.flops.tower


def test_tiles_are_counted(tmp_path):
    """Of the images of the corpus, or else of the largest image that is possible."""
    given = "[(336,672),(672,336),(672,672),(1008,336),(336,1008)]"
    flags = ("--image_aspect_ratio", "anyres", "--image_grid_pinpoints", given,
             "--mm_patch_merge_type", "spatial_unpad")  # fmt: skip
    with pytest.raises(ConfigError, match="takes 2,928 positions, but --model_max_length is 2,048"):
        make_plan("vicuna-7b", 8, "a100-80g", extra=flags)
    flags += ("--model_max_length", "4096")
    flat = make_plan("vicuna-7b", 8, "a100-80g").stages[0]
    tiled = make_plan("vicuna-7b", 8, "a100-80g", extra=flags).stages[0]
    # 672 x 672 pixels take 576 + 48 x 49 positions
    assert tiled.data.num_positions - flat.data.num_positions == 2928 - 576
    assert "images of 672 x 672 pixels" in tiled.data.source_of_lengths
    assert tiled.flops.tower == 5 * flat.flops.tower
    assert tiled.memory.image_features == 5 * flat.memory.image_features
    with CorpusWriter(tmp_path / "small", ("hr",), image_root="..") as writer:
        for i, size in enumerate([(640, 480), (336, 336)]):
            Image.new("RGB", size).save(tmp_path / f"{i}.jpg")
            turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A cup."))
            row = CorpusRow(f"{i}", f"{i}.jpg", None, None, True, turns)
            writer.append(row, {"hr": turns})
    shape = load_shape("lmsys/vicuna-7b-v1.5", TOWER)
    stage = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": given,
             "mm_patch_merge_type": "spatial_unpad", "version": "v1", "model_max_length": "4096",
             "corpus_path": str(tmp_path / "small"),
             "model_name_or_path": "tests/golden/llava/model/tiny-llava"}  # fmt: skip
    data = measure_data(stage, shape, 1, Wishes())
    text = measure_data({**stage, "image_aspect_ratio": "pad"}, shape, 1, Wishes())
    # as LLaVA-1.6 counts them: 2340 and 1176 positions, four and two tiles after the overview
    assert data.num_positions - text.num_positions == (2340 + 1176) / 2 - 576
    assert (data.num_tiles, text.num_tiles) == ((5 + 3) / 2, 1)
