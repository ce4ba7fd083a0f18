"""Computes a model's size and the operations of training it from its shape alone.

Input: `config.json` of a language model and of a CLIP tower. Output: parameters by part, and the
floating-point operations for one sample. Recomputation for activation checkpointing does not count,
as in the definition of MFU. Non-goals: memory (`lrm_ext.plan`), time.

Legend: T positions of a sample, S its supervised positions, P image features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llava.errors import ConfigError
from llava.model.checkpoint import LANGUAGE_PART, TOWER_PART, split_parts

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
    """Sizes of a decoder of the Llama, Mistral or MPT family.

    Attributes:
        vocab_size: Rows of the embedding table.
        hidden_size: Width.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        is_gated: The MLP has a gate (SwiGLU) and thus three matrices instead of two.
        is_tied: The output matrix is the embedding table.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_gated: bool = True
    is_tied: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> LanguageModelShape:
        """Reads the sizes from the content of `config.json`.

        Raises:
            ConfigError: A size is missing.
        """
        try:
            if "mpt" in str(config.get("model_type")):
                width, heads = config["d_model"], config["n_heads"]
                return cls(
                    config["vocab_size"], width, int(config.get("expansion_ratio", 4) * width),
                    config["n_layers"], heads, heads, width // heads, False, True,
                )  # fmt: skip
            heads = config["num_attention_heads"]
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                is_tied=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise ConfigError(
                f"{where}: {error} is missing; expected the config.json of a language model of the "
                "Llama, Mistral or MPT family"
            ) from error

    @property
    def linear_sizes(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer of a block."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = ((width, queries), (width, keys), (width, keys), (queries, width))
        gate = ((width, inner),) if self.is_gated else ()
        return (*attention, *gate, (width, inner), (inner, width))

    @property
    def num_in_matrices(self) -> int:
        """Parameters of the blocks' matrices."""
        return self.num_layers * sum(rows * columns for rows, columns in self.linear_sizes)

    @property
    def num_in_norms(self) -> int:
        """Parameters of all norms."""
        return (2 * self.num_layers + 1) * self.hidden_size

    @property
    def num_in_embeddings(self) -> int:
        """Parameters of the embedding table and, unless tied, the output matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return self.num_in_matrices + self.num_in_norms + self.num_in_embeddings

    def num_in_adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on every linear layer of the blocks."""
        return self.num_layers * rank * sum(rows + columns for rows, columns in self.linear_sizes)

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
        matrices = 2.0 * (self.num_in_matrices * num_positions + head * num_logits)
        width = self.num_heads * self.head_dim
        return matrices, 2.0 * self.num_layers * width * num_positions**2


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a CLIP vision tower.

    Attributes:
        hidden_size: Width.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        image_size_px: Side of an image.
        patch_size_px: Side of a patch.
        select_layer: Index into its hidden states; blocks after it are not run.
        num_heads: Heads of the attention.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    image_size_px: int
    patch_size_px: int
    select_layer: int = -2
    num_heads: int = 16

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], where: str, select_layer: int = -2
    ) -> TowerShape:
        """Reads the sizes from the content of `config.json`.

        Raises:
            ConfigError: A size is missing.
        """
        config = config.get("vision_config", config)
        try:
            return cls(
                config["hidden_size"],
                config["intermediate_size"],
                config["num_hidden_layers"],
                config["image_size"],
                config["patch_size"],
                select_layer,
                # CLIP's towers have heads of 64
                config.get("num_attention_heads") or max(config["hidden_size"] // 64, 1),
            )
        except KeyError as error:
            raise ConfigError(
                f"{where}: {error} is missing; expected the config.json of a CLIP vision model"
            ) from error

    @property
    def num_patches(self) -> int:
        """P, without the class token."""
        return (self.image_size_px // self.patch_size_px) ** 2

    @property
    def num_layers_run(self) -> int:
        """Blocks up to the selected layer."""
        below = self.select_layer + self.num_layers + 1
        return below if self.select_layer < 0 else self.select_layer

    @property
    def _num_in_block(self) -> int:
        width, inner = self.hidden_size, self.intermediate_size
        return 4 * width * width + 2 * width * inner

    @property
    def _num_in_biases(self) -> int:
        """Biases and norms of a block."""
        return 4 * self.hidden_size + self.intermediate_size + self.hidden_size * 5

    @property
    def _num_in_embeddings(self) -> int:
        """Parameters before the blocks: patches, positions, class token and a norm."""
        width = self.hidden_size
        patches = 3 * self.patch_size_px**2 * width
        return patches + (self.num_patches + 1) * width + width + 2 * width

    @property
    def num_parameters(self) -> int:
        """All parameters, with those of blocks that are not run."""
        blocks = self.num_layers * (self._num_in_block + self._num_in_biases)
        return blocks + self._num_in_embeddings + 2 * self.hidden_size

    def num_layers_tuned(self, tuning: TowerTuning) -> int:
        """Blocks that a stage trains."""
        return self.num_layers_run if tuning.last_layers is None else tuning.last_layers

    def num_tuned(self, tuning: TowerTuning | None) -> int:
        """Parameters that a stage trains, of the tower or of its adapters."""
        if tuning is None:
            return 0
        layers, width = self.num_layers_tuned(tuning), self.hidden_size
        if tuning.lora_rank:
            return layers * tuning.lora_rank * (8 * width + 2 * (width + self.intermediate_size))
        embeddings = self._num_in_embeddings if tuning.last_layers is None else 0
        return layers * (self._num_in_block + self._num_in_biases) + embeddings

    @property
    def forward_flops(self) -> float:
        """Operations for one image, up to the selected layer."""
        positions, width = self.num_patches + 1, self.hidden_size
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
        layers, positions = self.num_layers_tuned(tuning), self.num_patches + 1
        attention = 8.0 * self.hidden_size * positions**2
        matrices = 2.0 * self._num_in_block * positions
        if tuning.lora_rank:
            return layers * (matrices + attention) + 6.0 * self.num_tuned(tuning) * positions
        patches = self._patch_flops if tuning.last_layers is None else 0.0
        return layers * (2 * matrices + attention) + patches


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
    tower: TowerShape | None

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
