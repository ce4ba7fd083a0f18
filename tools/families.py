"""Checks every decoder of transformers with images; writes docs/models.md and families.json.

python tools/families.py                  # checks all families, prints what changed; exit code 1
python tools/families.py --write          # the same, and writes both files
python tools/families.py qwen3 gemma2     # checks some, and prints what is found

Each family is built tiny, with random weights. A family works if all of `CHECKS` pass; one that
fails the check of packing alone works without it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import logging
import re
import signal
import string
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX  # noqa: E402
from llava.files import write_atomically  # noqa: E402
from llava.mm_utils import pad_left  # noqa: E402
from llava.model.families import (  # noqa: E402
    ALIASES,
    CHECKED_FILE,
    TABLE,
    checked_families,
    class_names,
    model_type_of,
)
from llava.model.language_model.causal_lm import choose_attention, get_family  # noqa: E402
from llava.train.arguments import ModelArguments, TrainingArguments  # noqa: E402
from llava.train.build import add_lora  # noqa: E402
from llava.train.flops import LanguageModelShape  # noqa: E402

log = logging.getLogger("families")

PAGE_FILE = Path(__file__).with_suffix(".md")
TOWER = ROOT / "tests" / "golden" / "llava" / "model" / "tiny-clip"
SIDE_PX, VOCABULARY = 28, 160
# sizes by the names that families give them; those that a configuration does not have are left out
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts",), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # linear attention and state spaces
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
}
# what a family needs besides
SPECIAL: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "xmod": {"default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"),
        {"full_attention_interval": 2},
    ),
    "recurrent_gemma": {"num_hidden_layers": 3},
    "bailing_hybrid": {"layer_group_size": 2},
    **dict.fromkeys(("kimi_linear",), {"layer_types": ["linear_attention", "full_attention"]}),
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "zamba2": {
        "layer_types": ["linear_attention", "hybrid"],
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
    },
    "zamba": {"layer_types": ["linear_attention", "hybrid"]},
}
TIMEOUT_S = 90
# in 16 bits the distances of a long row, unlike those of a sample, would be inexact
ALIBI = ("bloom", "mpt")
# what errors of transformers mean
KNOWN = {
    "You cannot specify both input_ids and inputs_embeds": "it cannot generate from embeddings",
    "without providing `input_ids`": "it needs the token ids beside the embeddings",
    "cannot be set up": "its layers cannot get LoRA adapters",
}
# configurations within a configuration that are not models
BLOCKS = ("attn", "ffn")
GREEDY = {"do_sample": False, "max_new_tokens": 5}


class CheckFailed(Exception):
    """A family does not do what it should."""


def tiny_config(name: str) -> dict[str, Any]:
    """Returns the content of a `config.json` of a small model of a family."""
    base = CONFIG_MAPPING[name]
    known = {field.name for field in dataclasses.fields(base)}
    values: dict[str, Any] = {key: value for key, value in SIZES.items() if key in known}
    if "kv_lora_rank" in known:  # every head has its own keys then
        values["num_key_value_heads"] = values["num_attention_heads"]
    # nothing random in training
    values |= {
        field.name: 0.0
        for field in dataclasses.fields(base)
        if isinstance(field.default, float) and re.search("drop|jitter", field.name)
    }
    return {**values, **SPECIAL.get(name, {}), "model_type": name}


class Case:
    """A family's model with images, and inputs for it."""

    def __init__(self, name: str):
        self.name, self.family = name, get_family(name)
        self.content = tiny_config(name)
        kept = {key: value for key, value in self.content.items() if key != "model_type"}
        vision = {
            "mm_vision_tower": str(TOWER),
            "mm_hidden_size": 32,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
        }
        torch.manual_seed(0)
        self.text_config = CONFIG_MAPPING[name](**kept)
        self.model = self.build({**kept, **vision})
        spread(self.model)
        tower = self.model.get_vision_tower()
        tower.load_model()
        tower.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(4, 3, SIDE_PX, SIDE_PX, generator=generator)
        self.rows = [
            [1, IMAGE_TOKEN_INDEX, 30, 31, 32],
            [1, 33, IMAGE_TOKEN_INDEX, 34, IMAGE_TOKEN_INDEX, 35, 36, 37],
            [1, 38, 39],
        ]
        self.images = [self.pixels[:1], self.pixels[1:3], self.pixels[3:]]

    def build(self, content: dict[str, Any]) -> Any:
        """Builds the model with images."""
        return self.family.model_class(self.family.config_class(**content)).eval()

    @cached_property
    def plain(self) -> Any:
        """Transformers' own model with the same weights."""
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.text_config)]
        model = kind(self.text_config).eval()
        weights = {
            key: value
            for key, value in self.model.state_dict().items()
            if "vision_tower" not in key and "mm_projector" not in key
        }
        model.load_state_dict(weights)
        return model

    def batch(self, side: str = "right") -> dict[str, Tensor]:
        """Returns the three rows as a padded batch with labels."""
        width = max(len(row) for row in self.rows)

        def pad(row: Sequence[int], value: int) -> list[int]:
            fill = [value] * (width - len(row))
            return [*row, *fill] if side == "right" else [*fill, *row]

        labels = [[i if i > 1 else IGNORE_INDEX for i in row] for row in self.rows]
        return {
            "input_ids": torch.tensor([pad(row, 0) for row in self.rows]),
            "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in self.rows]),
            "labels": torch.tensor([pad(row, IGNORE_INDEX) for row in labels]),
            "images": self.pixels,
        }


def spread(model: Any) -> None:
    """Makes the weights large enough that the answers differ from token to token."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter.normal_(std=0.15, generator=generator)
    model.tie_weights()


def same(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Compares.

    Raises:
        CheckFailed: They differ by more.
    """
    if found.shape != expected.shape:
        raise CheckFailed(f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}")
    if not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        raise CheckFailed(what)


def check_kind(case: Case) -> None:
    """It is a decoder whose layers are the class that transformers registers."""
    inner: Any = type(getattr(case.plain, case.model.base_model_prefix))
    if inner is not MODEL_MAPPING[type(case.text_config)]:
        raise CheckFailed(f"its layers are a {inner.__name__}")


def check_causal(case: Case) -> None:
    """A later token does not change what came before."""
    ids = torch.tensor([[1, 20, 21, 22, 23, 24, 25, 26]])
    changed = ids.clone()
    changed[0, -1] = 99
    with torch.no_grad():
        same(case.plain(ids).logits[:, :-1], case.plain(changed).logits[:, :-1],
             "positions see later ones (an encoder)")  # fmt: skip


def check_text(case: Case) -> None:
    """Logits, loss and gradient on text are those of transformers' own model."""
    ids = torch.tensor([[1, *range(20, 50)]])
    expected, found = case.plain(ids, labels=ids), case.model(ids, labels=ids)
    same(found.logits, expected.logits, "other logits on text than transformers' own model")
    same(found.loss, expected.loss, "another loss on text than transformers' own model")
    grads = []
    for model in (case.plain.train(), case.model.train()):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append(model.get_input_embeddings().weight.grad.clone())
        model.zero_grad()
        model.eval()
    same(grads[1], grads[0], "another gradient on text than transformers' own model", 1e-3)


def check_images(case: Case) -> None:
    """The loss with images reaches projector, embeddings and layers; images change the logits."""
    batch, model = case.batch(), case.model.train()
    model(**batch).loss.backward()
    inner = model.get_model()
    reached = [inner.mm_projector[0].weight, model.get_input_embeddings().weight]
    if not all(p.grad is not None and p.grad.abs().sum() > 0 for p in reached):
        raise CheckFailed("no gradient reaches the projector")
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        one = torch.tensor(case.rows[:1])
        logits = [model(one, images=case.pixels[i : i + 1]).logits for i in (0, 1)]
        if torch.allclose(*logits):
            raise CheckFailed("images do not change the logits")
        # each row as it is without the others
        embeds = model.prepare_inputs_labels_for_multimodal(
            batch["input_ids"], None, batch["attention_mask"], None, batch["labels"], case.pixels
        )
        alone = [
            model(torch.tensor([row]), labels=torch.tensor([row]).clamp(min=IGNORE_INDEX),
                  images=images).logits[0]
            for row, images in zip(case.rows, case.images, strict=True)
        ]  # fmt: skip
        padded = model(**batch).logits
        for row, (logits_alone, kept) in enumerate(zip(alone, embeds[2].bool(), strict=True)):
            same(padded[row][kept], logits_alone, "padding changes the logits")


def check_generate(case: Case) -> None:
    """Answers in a batch padded on the left are those of one prompt at a time, and of no cache."""
    model, batch = case.model, case.batch("left")
    single = [
        model.generate(torch.tensor([row]), images=images, **GREEDY)
        for row, images in zip(case.rows, case.images, strict=True)
    ]
    uncached = model.generate(
        torch.tensor(case.rows[:1]), images=case.images[0], use_cache=False, **GREEDY
    )
    if not torch.equal(uncached, single[0]):
        raise CheckFailed("the cache changes the answer")
    text = model.generate(torch.tensor(case.rows[2:]), **GREEDY)
    expected = case.plain.generate(
        torch.tensor(case.rows[2:]), attention_mask=torch.ones(1, 3, dtype=torch.long), **GREEDY
    )
    if not torch.equal(text, expected[:, 3:]):
        raise CheckFailed("the answer to text is not that of transformers' own model")
    batch.pop("labels")
    together = model.generate(batch.pop("input_ids"), **batch, **GREEDY)
    for row, answer in enumerate(single):
        if not torch.equal(together[row][: answer.shape[1]], answer[0]):
            raise CheckFailed("padding on the left changes the answer")


def check_prefixes(case: Case) -> None:
    """Answers to questions on one image, whose beginnings are computed once, stay the same."""
    model = case.model
    rows = [[1, IMAGE_TOKEN_INDEX, *rest] for rest in ([30], [31, 32, 33], [34, 35])]
    pixels = case.pixels[[0, 0, 1]]
    single = [
        model.generate(torch.tensor([row]), images=image[None], **GREEDY)
        for row, image in zip(rows, pixels, strict=True)
    ]
    ids, mask = pad_left(rows, 0)
    length = 1 + model.get_vision_tower().num_image_tokens
    together = model.generate(
        ids, attention_mask=mask, images=pixels, prefix_lengths=[length] * len(rows), **GREEDY
    )
    for row, answer in enumerate(single):
        if not torch.equal(together[row][: answer.shape[1]], answer[0]):
            raise CheckFailed("sharing what questions begin with changes the answer")


def check_packing(case: Case) -> None:
    """The samples of a packed row have the loss that they have by themselves."""
    model, batch = case.model, case.batch()
    attention = choose_attention(type(model), None, packing=True)
    own = model.config._attn_implementation
    with torch.no_grad():
        alone = []
        for row, images in zip(case.rows, case.images, strict=True):
            ids = torch.tensor([row])
            labels = torch.tensor([[i if i > 1 else IGNORE_INDEX for i in row]])
            alone.append(model(ids, labels=labels, images=images, num_items_in_batch=1).loss)
        if attention is not None:
            model.set_attn_implementation(attention)
        try:
            packed = model(**batch, packing=True, num_items_in_batch=1).loss
        finally:
            model.set_attn_implementation(own)
    same(packed, torch.stack(alone).sum(), "the samples of a row would see each other", 1e-5)


def check_lora(case: Case) -> None:
    """Adapters on the linear layers learn, and nothing else does."""
    args = TrainingArguments(lora_enable=True, lora_r=2, lora_alpha=4, lora_dropout=0.0)
    content = {**case.model.config.to_dict()}
    content.pop("model_type")
    model = add_lora(case.build(content), ModelArguments(), args).train()
    model.get_base_model().get_vision_tower().load_model()
    model(**case.batch()).loss.backward()
    adapters = [p for name, p in model.named_parameters() if "lora_B" in name and p.requires_grad]
    if not adapters or all(p.grad is None or not p.grad.abs().sum() for p in adapters):
        raise CheckFailed("no adapter learns")
    head = model.get_base_model().get_output_embeddings()
    tower = model.get_base_model().get_vision_tower()
    if any("lora" in n for part in (head, tower) for n, _ in part.named_parameters()):
        raise CheckFailed("tower or head got adapters")
    merged = model.merge_and_unload()
    if any("lora" in name for name, _ in merged.named_parameters()):
        raise CheckFailed("adapters cannot be merged")


def check_files(case: Case) -> None:
    """A saved model is the same when it is loaded, and a plain one gives its weights."""
    ids = torch.tensor(case.rows[:1])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        case.model.save_pretrained(folder)
        content = json.loads((Path(folder) / "config.json").read_text())
        wanted = (model_type_of(case.name), [type(case.model).__name__])
        if (content["model_type"], content["architectures"]) != wanted:
            raise CheckFailed(f"config.json names {content['model_type']}")
        again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        if type(again) is not type(case.model):
            raise CheckFailed(f"is loaded as {type(again).__name__}")
        expected = case.model(ids, images=case.pixels[:1]).logits
        same(
            again(ids, images=case.pixels[:1]).logits,
            expected,
            "a saved model is not the same when it is loaded",
        )
        case.plain.save_pretrained(folder)
        base, info = type(case.model).from_pretrained(
            folder, config=case.model.config, output_loading_info=True
        )
        gaps = [key for key in info["missing_keys"] if "mm_projector" not in key]
        if gaps:
            raise CheckFailed(f"a plain checkpoint lacks {gaps[:2]}")


def check_plan(case: Case) -> None:
    """The plan's parameters are those of the model."""
    shape = LanguageModelShape.from_config(case.content, case.name)
    counted = sum(p.numel() for p in case.plain.parameters())
    if shape.num_parameters != counted:
        raise CheckFailed(f"the plan counts {shape.num_parameters} parameters, not {counted}")


CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_") and inspect.isfunction(function)
}


def unsuitable(name: str) -> str | None:
    """Tells why a kind of model needs no check, or None."""
    base = CONFIG_MAPPING[name]
    defaults = {field.name: field.default for field in dataclasses.fields(base)}
    if defaults.get("is_encoder_decoder") is True:
        return "it is an encoder-decoder"
    parts = [part for part in base.sub_configs if part.removesuffix("_config") not in BLOCKS]
    if base not in MODEL_MAPPING:
        return "transformers registers no inner model for it"
    if parts:
        text = f"{name}_text"
        instead = (
            f"; as a base, its language model is taken: {text}" if text in CONFIG_MAPPING else ""
        )
        return f"it is made of several models ({', '.join(parts)}){instead}"
    return None


def check(name: str) -> dict[str, str]:
    """Checks a family.

    Returns:
        `refused`, `packing` or `mask` with the reason, or nothing if all checks pass.
    """
    if (reason := unsuitable(name)) is not None:
        return {"refused": reason}
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(TIMEOUT_S)
    try:
        with as_unchecked(name) as model_class:
            return _check(name, model_class)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"refused": f"not checked, because it cannot be built small: {text}"[:200]}
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def as_unchecked(name: str) -> Iterator[Any]:
    """Lets a family count as one that works, whatever an earlier check found."""
    before = checked_families().get(name)
    checked_families()[name] = {}
    model_class = get_family(name).model_class
    own = (model_class.cannot_pack, model_class.packs_by_mask)
    model_class.cannot_pack, model_class.packs_by_mask = None, False
    try:
        yield model_class
    finally:
        model_class.cannot_pack, model_class.packs_by_mask = own
        checked_families().pop(name)
        if before is not None:
            checked_families()[name] = before


def _too_slow(*args: Any) -> None:
    raise CheckFailed(f"takes more than {TIMEOUT_S} s")


def _check(name: str, model_class: Any) -> dict[str, str]:
    case = Case(name)
    found: dict[str, str] = {}
    for check_name, function in CHECKS.items():
        reason = failure(function, case)
        if reason is None:
            continue
        if check_name != "packing":
            return {"refused": reason}
        if name in ALIBI:
            found = {"packing": "it has no position ids but distances (ALiBi)"}
            continue
        model_class.packs_by_mask = True
        masked = failure(function, case)
        found = {"mask": "its masks know no positions"} if masked is None else {"packing": reason}
    return found


def failure(function: Callable[[Case], None], case: Case) -> str | None:
    """Returns why a check fails, or None."""
    try:
        function(case)
    except CheckFailed as error:
        return str(error)
    except Exception as error:
        if known := next((why for part, why in KNOWN.items() if part in str(error)), None):
            return known
        text = " ".join(re.sub(rf"{tempfile.gettempdir()}/\S+ ", "", str(error)).split())
        return f"{type(error).__name__}: {text}"[:200]
    return None


def page(checked: Mapping[str, Mapping[str, str]]) -> str:
    """Writes docs/models.md from what the check found."""
    checked = {name: checked[name] for name in sorted(checked)}
    works = {name: found for name, found in checked.items() if "refused" not in found}
    packs = [name for name, found in works.items() if "packing" not in found]
    rows = [
        ["`model_type`", "in a checkpoint with images", "class", "packing"],
        *([f"`{name}`", f"`{model_type_of(name)}`", f"`{class_names(name)[2]}`",
           "by a mask" if "mask" in works[name] else ""] for name in packs),
    ]  # fmt: skip
    padded = [["`model_type`", "in a checkpoint with images", "class", "why it is not packed"]]
    for name, found in works.items():
        if "packing" in found:
            names = (f"`{model_type_of(name)}`", f"`{class_names(name)[2]}`")
            padded.append([f"`{name}`", *names, found["packing"]])
    refused = [["`model_type`", "why"]]
    refused += [[f"`{k}`", v["refused"]] for k, v in checked.items() if "refused" in v]
    values = {
        "version": transformers.__version__.rsplit(".", 1)[0],
        "num_works": len(packs),
        "num_padded": len(padded) - 1,
        "num_refused": len(refused) - 1,
        "works": table(rows),
        "padded": table(padded),
        "refused": table(refused),
    }
    return string.Template(PAGE_FILE.read_text(encoding="utf-8")).substitute(values)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Writes a Markdown table, whose first row is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Checks, and prints or writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="families; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE} and families.json")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    before = dict(checked_families())
    every = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(ALIASES))
    after = {name: found for name, found in before.items() if name in every}
    for name in options.names or every:
        after[name] = check(name)
        log.info("%-26s %s", name, after[name] or "works")
    if options.write:
        write_atomically(CHECKED_FILE, json.dumps(after, indent=1, sort_keys=True) + "\n")
        write_atomically(ROOT / TABLE, page(after))
        return 0
    changed = {name for name, found in after.items() if found != before.get(name)}
    log.info("%d of %d differ from %s: %s", len(changed), len(after), CHECKED_FILE.name,
             ", ".join(sorted(changed)))  # fmt: skip
    return int(bool(changed))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    sys.exit(main())
