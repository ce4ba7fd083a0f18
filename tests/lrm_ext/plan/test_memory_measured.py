"""The memory that plans count, against a training step of the preset `mini` that is measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.train.build import _tuned_in_tower
from llava.train.flops import ADAPTERS, ALL, PROJECTOR, TowerTuning
from lrm_ext.plan.memory import StageSettings, estimate_memory
from lrm_ext.plan.presets import load_shape

MINI = Path(__file__).parents[3] / "playground" / "models" / "mini"
B, T, SUPERVISED, RANK = 16, 101, 40, 8


def mini_model():
    folder = str(MINI / "llm")
    config = LlavaConfig.from_pretrained(folder)
    model = LlavaLlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
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
    model.config.use_cache = False
    return model


def prepared(trained: str, checkpointing: bool, tuning: TowerTuning | None = None):
    """The model of a stage."""
    model = mini_model()
    tower = model.get_vision_tower()
    if trained == ADAPTERS:
        peft = pytest.importorskip("peft")
        from llava.train.build import find_all_linear_names

        names = find_all_linear_names(model)
        targets = rf"(?!.*(mm_projector|vision_tower)).*\.({'|'.join(names)})"
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=RANK, target_modules=targets, lora_dropout=0.05)
        )
    else:
        model.requires_grad_(trained == ALL)
    model.get_model().mm_projector.requires_grad_(True)
    tower.requires_grad_(False)
    if tuning is not None:
        tuned = _tuned_in_tower(tower, tuning.last_layers)
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(name in tuned)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def peak_of_a_step(model, images: dict[str, torch.Tensor]) -> int:
    """Bytes that a step allocates at its peak; those that are there before are not counted."""
    torch.manual_seed(0)
    ids = torch.randint(5, 4000, (B, T))
    ids[:, 3] = IMAGE_TOKEN_INDEX
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    inputs = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        **images,
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step():
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # afterwards the optimizer has its states
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    states = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
    )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return peak + states + weights


@pytest.mark.parametrize(
    ("trained", "checkpointing"),
    [
        (ALL, False),
        (PROJECTOR, False),
        (ALL, True),
        pytest.param(ADAPTERS, False, marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_step_is_within_a_tenth(trained, checkpointing):
    shape = load_shape(str(MINI / "llm"), str(MINI / "vision_tower"))
    settings = StageSettings(
        trained,
        B,
        num_gpus=0,
        half=False,
        checkpointing=checkpointing,
        lora_rank=RANK if trained == ADAPTERS else 0,
        caches_features=True,
    )
    num_positions = T - 1 + shape.num_image_tokens
    expected = estimate_memory(shape, settings, num_positions, SUPERVISED).total
    images = {"image_features": torch.randn(B, 16, 160)}
    measured = peak_of_a_step(prepared(trained, checkpointing), images)
    assert measured == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("trained", "checkpointing", "last_layers"),
    [(ALL, False, None), (PROJECTOR, False, None), (PROJECTOR, False, 1), (ALL, True, None)],
)
def test_memory_of_a_trained_tower_is_within_a_tenth(trained, checkpointing, last_layers):
    shape = load_shape(str(MINI / "llm"), str(MINI / "vision_tower"))
    tuning = TowerTuning(last_layers)
    model = prepared(trained, checkpointing, tuning)
    tower = model.get_vision_tower()
    in_tower = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    assert shape.tower.num_tuned(tuning) == in_tower
    settings = StageSettings(
        trained, B, num_gpus=0, half=False, checkpointing=checkpointing, tower_tuning=tuning
    )
    num_positions = T - 1 + shape.num_image_tokens
    expected = estimate_memory(shape, settings, num_positions, SUPERVISED).total
    # the pixels are there before the step, so they are not in what is measured
    expected -= B * 3 * 64**2 * 4
    measured = peak_of_a_step(model, {"images": torch.randn(B, 3, 64, 64)})
    assert measured == pytest.approx(expected, rel=0.1)
