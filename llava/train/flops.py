"""Computes a model's size and the operations of training it from its shape alone.

Input: `config.json` of a language model and of a vision tower. Output: parameters by part, and the
floating-point operations for one sample. Recomputation for activation checkpointing does not count,
as in the definition of MFU. Non-goals: memory (`lrm_ext.plan`), time.

Legend: T positions of a sample, S its supervised positions, P image features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from llava.errors import ConfigError
from llava.model.checkpoint import LANGUAGE_PART, TOWER_PART, split_parts
from llava.model.families import build_blank, linear_layers
from llava.model.multimodal_encoder.families import (
    family_of,
    processor_side,
    side_px,
    vision_part,
)

GPU_FILE = Path(__file__).with_name("gpus.json")
# what a stage may train, besides the tower
PROJECTOR, ADAPTERS, ALL = "projector", "adapters", "all"


@dataclass(frozen=True)
class TowerTuning:
    """How a stage trains the vision tower.

    Attributes:
        last_layers: Layers that are trained, counted back from the selected one; None: all, and
            the embeddings.
        lora_rank: Rank of the adapters; 0: the weights themselves are trained.
    """

    last_layers: int | None = None
    lora_rank: int = 0


def what_is_trained(
    tunable_parts: str | None,
    last_layers: int | None = None,
    adapter_only: bool = False,
    lora_rank: int = 0,
) -> tuple[str, TowerTuning | None]:
    """Tells from a stage's flags what it trains.

    Args:
        tunable_parts: `--mm_tunable_parts`.
        last_layers: `--mm_vision_tower_last_layers`.
        adapter_only: `--tune_mm_mlp_adapter`.
        lora_rank: `--lora_r`; 0 without `--lora_enable`.

    Returns:
        PROJECTOR, ADAPTERS or ALL for the language model, and how the tower is trained, or None.
    """
    named = [] if adapter_only else split_parts(tunable_parts)
    tower = TowerTuning(last_layers, lora_rank) if TOWER_PART in named else None
    if adapter_only or (named and LANGUAGE_PART not in named):
        return PROJECTOR, tower
    return ADAPTERS if lora_rank else ALL, tower


@dataclass(frozen=True)
class LanguageModelShape:
    """Sizes of a language model, counted on the model that its configuration makes.

    Attributes:
        vocab_size: Rows of the embedding table.
        hidden_size: Width.
        intermediate_size: Width of the MLP; of a mixture of experts, of those that a token visits.
        num_layers: Blocks.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        is_gated: The MLP has a gate (SwiGLU) and thus three matrices instead of two.
        is_tied: The output matrix is the embedding table.
        linear_sizes: (inputs, outputs) of each linear layer of the blocks.
        num_in_matrices: Parameters of the blocks' matrices, those of all experts included.
        num_visited: Those of them that a token visits; all, without experts.
        num_in_embeddings: Parameters of the embedding table and, unless tied, the output matrix.
        num_parameters: All parameters.
        expert_sizes: Shape of each tensor that holds all experts of a layer.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_gated: bool
    is_tied: bool
    linear_sizes: tuple[tuple[int, int], ...]
    num_in_matrices: int
    num_visited: float
    num_in_embeddings: int
    num_parameters: int
    expert_sizes: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> LanguageModelShape:
        """Counts the model of a `config.json`, whose content this is.

        Raises:
            ConfigError: A size is missing, or the family does not work.
        """
        return _count(json.dumps(dict(config), sort_keys=True, default=str), where)

    @property
    def num_in_norms(self) -> int:
        """Parameters of norms and biases, and all others outside matrices and embeddings."""
        return self.num_parameters - self.num_in_matrices - self.num_in_embeddings

    def num_in_adapters(self, rank: int, experts: bool = False) -> int:
        """Parameters of LoRA adapters on every linear layer of the blocks, and on all experts."""
        sizes = self.expert_sizes if experts else ()
        in_experts = sum(number * (rows + columns) for number, rows, columns in sizes)
        return rank * (in_experts + sum(rows + columns for rows, columns in self.linear_sizes))

    @property
    def num_in_experts(self) -> int:
        """Parameters of the tensors that hold all experts of a layer."""
        return sum(math.prod(size) for size in self.expert_sizes)

    def forward_flops(self, num_positions: float, num_logits: float) -> tuple[float, float]:
        """Counts the operations of a forward pass over one sample.

        Args:
            num_positions: T.
            num_logits: Positions with logits.

        Returns:
            Operations of matrices, with the head, and of causal attention (the masked half does
            not count).
        """
        head = self.vocab_size * self.hidden_size
        matrices = 2.0 * (self.num_visited * num_positions + head * num_logits)
        width = self.num_heads * self.head_dim
        return matrices, 2.0 * self.num_layers * width * num_positions**2


# what transformers' families call a size
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_A_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")


@lru_cache(maxsize=32)
def _count(content: str, where: str) -> LanguageModelShape:
    """Counts the language model of a configuration, given as JSON."""
    given = json.loads(content)
    model = build_blank(given, where)
    config = model.config
    tables = {id(module.weight): module.weight.numel() for module in _tables(model)}
    parameters = {name: p for name, p in model.named_parameters() if id(p) not in tables}
    linears = {f"{name}.weight" for name in linear_layers(model)}
    # the weights of all experts are one tensor
    expert_sizes = tuple(tuple(p.shape) for p in parameters.values() if p.ndim == 3)
    experts = sum(map(math.prod, expert_sizes))
    linear_sizes = tuple(tuple(p.shape[::-1]) for name, p in parameters.items() if name in linears)
    matrices = experts + sum(rows * columns for rows, columns in linear_sizes)
    visited = _first(config, _EXPERTS_A_TOKEN, 1) / _first(config, _EXPERTS, 1) if experts else 1.0
    heads = _first(config, ("num_attention_heads",), 1)
    width = config.hidden_size
    inner = _first(config, ("intermediate_size",), 4 * width)
    if experts:
        inner = _first(config, ("moe_intermediate_size",), inner) * _first(
            config, _EXPERTS_A_TOKEN, 1
        )
    return LanguageModelShape(
        vocab_size=config.vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=_first(config, ("num_key_value_heads",), heads),
        head_dim=_first(config, ("head_dim",), width // heads),
        is_gated=any("gate" in name for name in parameters),
        is_tied=len(tables) == 1,
        linear_sizes=linear_sizes,
        num_in_matrices=matrices,
        num_visited=matrices - experts + experts * visited,
        num_in_embeddings=sum(tables.values()),
        num_parameters=sum(p.numel() for p in parameters.values()) + sum(tables.values()),
        expert_sizes=expert_sizes,
    )


def _tables(model: Any) -> list[Any]:
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [table for table in tables if table is not None]


def _first(config: Any, names: Sequence[str], default: int) -> int:
    """Returns the first of these attributes that is a number; those of single layers are not."""
    own = vars(config)
    found = (own.get(config.attribute_map.get(name, name)) for name in names)
    return next((value for value in found if isinstance(value, int)), default)


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower.

    Attributes:
        hidden_size: Width.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        image_size_px: Side of an image.
        patch_size_px: Side of a patch.
        select_layer: Index into its hidden states; blocks after it are not run.
        num_before_patches: Class and register tokens.
        is_gated: The MLP has a gate (SwiGLU) and thus three matrices instead of two.
        has_pooling_head: A block that pools the patches follows, which is not run.
        num_heads: Heads of the attention.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    image_size_px: int
    patch_size_px: int
    select_layer: int = -2
    num_before_patches: int = 1
    is_gated: bool = False
    has_pooling_head: bool = False
    num_heads: int = 16

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        where: str,
        select_layer: int = -2,
        processor: Mapping[str, Any] | None = None,
    ) -> TowerShape:
        """Reads the sizes from the content of `config.json`.

        Args:
            config: The content; without a `model_type` it is CLIP's.
            where: Its place, for messages.
            select_layer: `--mm_vision_select_layer`.
            processor: Content of `preprocessor_config.json`, which decides the size of the images
                of a tower that takes any.

        Raises:
            ConfigError: A size is missing.
        """
        config = vision_part(config)
        family = family_of(config.get("model_type", "clip_vision_model"))
        try:
            width = config["hidden_size"]
            is_gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
            inner = config.get("intermediate_size") or int(width * config["mlp_ratio"])
            if config.get("use_swiglu_ffn"):
                inner = (int(inner * 2 / 3) + 7) // 8 * 8  # as DINOv2 rounds it
            side = side_px(config["image_size"], f"{where}: image_size")
            if processor is not None and family is not None and family.any_size:
                side = processor_side(SimpleNamespace(**processor))
            before = family.num_class_tokens + family.num_registers(config) if family else 1
            return cls(
                width,
                inner,
                config["num_hidden_layers"],
                int(side or 0),
                int(side_px(config["patch_size"], f"{where}: patch_size") or 0),
                select_layer,
                before,
                is_gated,
                before == 0 and family is not None and bool(config.get("vision_use_head", True)),
                # CLIP's towers have heads of 64
                config.get("num_attention_heads") or max(config["hidden_size"] // 64, 1),
            )
        except KeyError as error:
            raise ConfigError(
                f"{where}: {error} is missing; expected the config.json of a vision transformer"
            ) from error

    @property
    def num_patches(self) -> int:
        """P, without the tokens before the patches."""
        return (self.image_size_px // self.patch_size_px) ** 2

    @property
    def num_pixels(self) -> int:
        """Values of an image."""
        return 3 * self.image_size_px**2

    @property
    def num_layers_run(self) -> int:
        """Blocks up to the selected layer."""
        below = self.select_layer + self.num_layers + 1
        return below if self.select_layer < 0 else self.select_layer

    @property
    def parts(self) -> tuple[TowerShape, ...]:
        """The tower itself, as `TowersShape` has several."""
        return (self,)

    @property
    def _num_in_block(self) -> int:
        width, inner = self.hidden_size, self.intermediate_size
        return 4 * width * width + (3 if self.is_gated else 2) * width * inner

    @property
    def _num_in_biases(self) -> int:
        """Biases and norms of a block."""
        return 4 * self.hidden_size + self.intermediate_size + self.hidden_size * 5

    @property
    def _num_in_embeddings(self) -> int:
        """Parameters before the blocks: patches, positions, class tokens and a norm."""
        width, before = self.hidden_size, self.num_before_patches
        patches = 3 * self.patch_size_px**2 * width
        return patches + (self.num_patches + before) * width + before * width + 2 * width

    @property
    def num_parameters(self) -> int:
        """All parameters, with those of blocks that are not run.

        Exact for CLIP; of other families the small ones (scales, mask tokens) are left out.
        """
        blocks = self.num_layers + self.has_pooling_head
        in_blocks = blocks * (self._num_in_block + self._num_in_biases)
        return in_blocks + self._num_in_embeddings + 2 * self.hidden_size

    def num_layers_tuned(self, tuning: TowerTuning) -> int:
        """Blocks that a stage trains."""
        return self.num_layers_run if tuning.last_layers is None else tuning.last_layers

    def num_tuned(self, tuning: TowerTuning | None) -> int:
        """Parameters that a stage trains, of the tower or of its adapters."""
        if tuning is None:
            return 0
        layers, width = self.num_layers_tuned(tuning), self.hidden_size
        if tuning.lora_rank:
            num_in_mlp = (3 if self.is_gated else 2) * (width + self.intermediate_size)
            return layers * tuning.lora_rank * (8 * width + num_in_mlp)
        embeddings = self._num_in_embeddings if tuning.last_layers is None else 0
        return layers * (self._num_in_block + self._num_in_biases) + embeddings

    @property
    def forward_flops(self) -> float:
        """Operations for one image, up to the selected layer."""
        positions, width = self.num_patches + self.num_before_patches, self.hidden_size
        block = 2.0 * self._num_in_block * positions + 4.0 * width * positions**2
        return self.num_layers_run * block + self._patch_flops

    @property
    def _patch_flops(self) -> float:
        return 6.0 * self.patch_size_px**2 * self.hidden_size * self.num_patches

    def backward_flops(self, tuning: TowerTuning | None) -> float:
        """Operations of the backward pass for one image; forward and backward for adapters.

        As for the language model: two products for a trained matrix, one for a frozen one that
        gradients pass through. Patches have no gradient of their inputs.
        """
        if tuning is None:
            return 0.0
        layers = self.num_layers_tuned(tuning)
        positions = self.num_patches + self.num_before_patches
        attention = 8.0 * self.hidden_size * positions**2
        matrices = 2.0 * self._num_in_block * positions
        if tuning.lora_rank:
            return layers * (matrices + attention) + 6.0 * self.num_tuned(tuning) * positions
        patches = self._patch_flops if tuning.last_layers is None else 0.0
        return layers * (2 * matrices + attention) + patches


@dataclass(frozen=True)
class TowersShape:
    """Sizes of towers side by side, whose features are concatenated.

    Attributes:
        parts: The towers.
    """

    parts: tuple[TowerShape, ...]

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return sum(part.hidden_size for part in self.parts)

    @property
    def num_patches(self) -> int:
        """P, the same for all."""
        return self.parts[0].num_patches

    @property
    def num_pixels(self) -> int:
        """Values of an image for all towers."""
        return 3 * len(self.parts) * max(part.image_size_px for part in self.parts) ** 2

    @property
    def num_parameters(self) -> int:
        """Parameters of all."""
        return sum(part.num_parameters for part in self.parts)

    @property
    def forward_flops(self) -> float:
        """Operations of all for one image."""
        return sum(part.forward_flops for part in self.parts)

    def num_tuned(self, tuning: TowerTuning | None) -> int:
        """Parameters that a stage trains, of all."""
        return sum(part.num_tuned(tuning) for part in self.parts)

    def backward_flops(self, tuning: TowerTuning | None) -> float:
        """Operations of the backward pass of all for one image."""
        return sum(part.backward_flops(tuning) for part in self.parts)


class SampleFlops(NamedTuple):
    """Operations for one training sample, by part of the model."""

    language_model: float
    attention: float
    tower: float
    projector: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


@dataclass(frozen=True)
class ModelShape:
    """A language model with its tower and a two-layer projector.

    Attributes:
        language_model: Its sizes.
        tower: Its sizes; None for a text-only model.
    """

    language_model: LanguageModelShape
    tower: TowerShape | TowersShape | None

    @property
    def num_in_projector(self) -> int:
        """Parameters of the projector `mlp2x_gelu`."""
        if self.tower is None:
            return 0
        width = self.language_model.hidden_size
        return self.tower.hidden_size * width + width * width + 2 * width

    @property
    def num_image_tokens(self) -> int:
        """Positions that an image takes."""
        return 0 if self.tower is None else self.tower.num_patches

    def sample_flops(
        self,
        num_positions: float,
        num_logits: float,
        trained: str = ALL,
        num_images: float = 1.0,
        tower_runs: bool = True,
        lora_rank: int = 0,
        tower_tuning: TowerTuning | None = None,
    ) -> SampleFlops:
        """Counts the operations for one sample, forward and backward.

        A trained matrix needs three products (forward, gradient of inputs, gradient of weights), a
        frozen one that gradients pass through two, one of the frozen tower one.

        Args:
            num_positions: T, including the image's.
            num_logits: Positions with logits; S if the loss computes no others.
            trained: PROJECTOR, ADAPTERS or ALL.
            num_images: Images per sample.
            tower_runs: False if its outputs are cached.
            lora_rank: Rank of the adapters.
            tower_tuning: How the tower is trained; None if it is frozen.
        """
        matrices, attention = self.language_model.forward_flops(num_positions, num_logits)
        adapters = 0.0
        if trained == ADAPTERS:
            adapters = 6.0 * self.language_model.num_in_adapters(lora_rank) * num_positions
        tower = 0.0
        if self.tower is not None and tower_runs:
            flops = self.tower.forward_flops + self.tower.backward_flops(tower_tuning)
            tower = flops * num_images
        return SampleFlops(
            (3 if trained == ALL else 2) * matrices + adapters,
            3 * attention,
            tower,
            6.0 * self.num_in_projector * self.num_image_tokens * num_images,
        )


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        key: Its name in commands.
        name: Its full name.
        match: Words in its CUDA name.
        memory_gib: Its memory.
        peak_tflops: Peak of dense bfloat16 matrix products, in 1e12 operations per second.
        plan_mfu: Share of the peak that plans assume.
        source: Source of the peak.
    """

    key: str
    name: str
    match: tuple[str, ...]
    memory_gib: float
    peak_tflops: float
    plan_mfu: float
    source: str


@cache
def gpus() -> dict[str, Gpu]:
    """Returns the known kinds of GPUs by key."""
    return {
        key: Gpu(key=key, **{**entry, "match": tuple(entry["match"])})
        for key, entry in json.loads(GPU_FILE.read_text(encoding="utf-8")).items()
    }


def get_gpu(key: str) -> Gpu:
    """Looks up a kind of GPU.

    Raises:
        ConfigError: There is none of that name; the choices are listed.
    """
    if key not in gpus():
        raise ConfigError(f"unknown GPU {key!r}; choose from: {', '.join(gpus())}")
    return gpus()[key]


def peak_tflops_of(device_name: str) -> float | None:
    """Returns the peak of the GPU with this CUDA name; None if it is unknown."""
    words = device_name.replace("-", " ").upper().split()
    for gpu in gpus().values():
        wanted = [word.upper() for word in " ".join(gpu.match).split()]
        # "40G" matches "40GB", but "A10" must not match "A100"
        if all(any(w == word or w.startswith(word + "B") for w in words) for word in wanted):
            return gpu.peak_tflops
    return None
