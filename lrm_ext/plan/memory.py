"""Estimates the memory of a training step on one device, by part.

Input: the sizes of a model and the settings of a stage. Output: bytes. The estimate is for the
beginning of the backward pass: weights, gradients, optimizer states, saved activations, and the
larger of the loss and a recomputed block, which never exist at the same time. The formulas count
the tensors that autograd saves in transformers' Llama with SDPA or flash attention; a test compares
them with measured steps. Non-goals: time and cost (`plan.py`), fragmentation (`FILL_LIMIT`).

Legend: e bytes per number in computation, r bytes per number in the residual stream.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields, replace

from llava.model.loss import MAX_CHUNK_LOGITS
from llava.train.flops import (
    ADAPTERS,
    ALL,
    PROJECTOR,
    LanguageModelShape,
    ModelShape,
    TowerShape,
    TowersShape,
    TowerTuning,
)

# usable share of a GPU's memory, the rest being lost to fragmentation: published runs of LLM
# Foundry used 0.80 to 0.82 of what these formulas allow
FILL_LIMIT = 0.82
# the CUDA context, and NCCL's buffers
CONTEXT_BYTES, NCCL_BYTES = 1e9, 1e9
_MAX_BATCH = 2**20
_STATES_BYTES = 8  # Adam's two moments in float32
_MASTER_BYTES = 4
# per logit at the peak of the loss: float32 log-probabilities and two gradients
_LOGIT_BYTES = 12
# 4 bits, and a doubly quantized scale for each 64 of them
_BYTES_OF_BITS = {4: 0.516, 8: 1.0}


@dataclass(frozen=True)
class StageSettings:
    """Settings of a stage that affect its memory.

    Attributes:
        trained: PROJECTOR, ADAPTERS (and projector) or ALL.
        batch_size: Samples per device and micro-batch.
        accumulation: Micro-batches per step.
        num_gpus: Number of GPUs; 0 means a CPU.
        zero_stage: ZeRO stage: 0 (none or DDP), 1, 2 or 3.
        offloads: Whether weights and optimizer states are offloaded to the host.
        half: Whether computation uses 16 bits.
        checkpointing: Whether activations are recomputed in the backward pass.
        lora_rank: Rank of the adapters.
        lora_experts: Whether experts get adapters, too.
        bits: Bits of frozen weights: 16, 8 or 4.
        caches_features: Whether the tower's outputs are read from a cache.
        selects_logits: Whether the loss computes logits of supervised positions only, in chunks.
        tower_tuning: How the vision tower is trained; None if it is frozen.
        num_tiles: Images of the tower's size that a sample has, mean.
    """

    trained: str
    batch_size: int
    accumulation: int = 1
    num_gpus: int = 1
    zero_stage: int = 0
    offloads: bool = False
    half: bool = True
    checkpointing: bool = False
    lora_rank: int = 0
    lora_experts: bool = False
    bits: int = 16
    caches_features: bool = False
    selects_logits: bool = True
    tower_tuning: TowerTuning | None = None
    num_tiles: float = 1.0

    @property
    def num_images(self) -> float:
        """Images of the tower's size in a micro-batch, mean."""
        return self.batch_size * self.num_tiles

    @property
    def num_devices(self) -> int:
        """Number of devices; a CPU counts as one."""
        return max(self.num_gpus, 1)

    @property
    def samples_a_step(self) -> int:
        """Samples of a step on all devices (global batch size)."""
        return self.batch_size * self.accumulation * self.num_devices

    @property
    def compute_bytes(self) -> int:
        """Bytes per number in computation, e."""
        return 2 if self.half else 4

    @property
    def stream_bytes(self) -> int:
        """Bytes per number in the residual stream, r: float32 under autocast of float32 weights."""
        autocast = self.half and not self.zero_stage and self.trained == ALL
        return 4 if autocast else self.compute_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part.

    Attributes:
        weights: All weights.
        gradients: Gradients of the trained weights.
        optimizer: Adam's moments and float32 copies of weights.
        activations: Activations that the forward pass saves.
        block: Recomputed activations of one block; 0 without checkpointing.
        logits: The loss at its peak, which is over before a block is recomputed.
        image_features: Images and the tower's outputs.
        buffers: Gathered weights, communication buffers, the CUDA context.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    block: float
    logits: float
    image_features: float
    buffers: float

    @property
    def total(self) -> float:
        """Peak of the sum of all parts."""
        parts = sum(getattr(self, field.name) for field in fields(self))
        return parts - min(self.block, self.logits)


def estimate_memory(
    shape: ModelShape, settings: StageSettings, num_positions: float, num_supervised: float
) -> Memory:
    """Estimates the memory of a step.

    Args:
        shape: Sizes of the model.
        settings: Settings of the stage.
        num_positions: Positions of a sample, including those of its image.
        num_supervised: Supervised positions of a sample.
    """
    tower, images_kept, images = _image_parts(shape, settings)
    weights, gradients, optimizer = _states(shape, settings)
    tokens = settings.batch_size * num_positions
    kept, block = _activations(shape.language_model, settings, tokens)
    tower_kept, tower_block = _tower_activations(shape.tower, settings)
    # a block of the tower is computed again when the language model's activations are freed
    block = max(block, tower_block - kept)
    supervised = settings.batch_size * num_supervised
    return Memory(
        weights + tower,
        gradients,
        optimizer,
        kept + images_kept + tower_kept,
        block,
        _logits(shape.language_model, settings, tokens, supervised),
        images,
        _buffers(shape.language_model, settings),
    )


def largest_batch(
    shape: ModelShape,
    settings: StageSettings,
    num_positions: float,
    num_supervised: float,
    memory_bytes: float,
) -> int:
    """Returns the largest micro-batch that fits a device; 0 if not even one sample does.

    Args:
        shape: Sizes of the model.
        settings: Settings of the stage; the batch size is ignored.
        num_positions: As for `estimate_memory`.
        num_supervised: As for `estimate_memory`.
        memory_bytes: Memory of the device.
    """

    def fits(batch_size: int) -> bool:
        changed = replace(settings, batch_size=batch_size)
        needed = estimate_memory(shape, changed, num_positions, num_supervised).total
        return needed <= FILL_LIMIT * memory_bytes

    # the sizes that fit come first, so the index of the first other one is their number
    return bisect_left(range(1, _MAX_BATCH), True, key=lambda size: not fits(size))


def num_trained(shape: ModelShape, settings: StageSettings) -> int:
    """Returns the number of parameters that a stage trains."""
    language_model = {
        PROJECTOR: 0,
        ADAPTERS: shape.language_model.num_in_adapters(settings.lora_rank, settings.lora_experts),
        ALL: shape.language_model.num_parameters,
    }[settings.trained]
    tower = 0 if shape.tower is None else shape.tower.num_tuned(settings.tower_tuning)
    return language_model + shape.num_in_projector + tower


def _states(shape: ModelShape, settings: StageSettings) -> tuple[float, float, float]:
    """Returns weights (without the tower), gradients and optimizer states, as ZeRO shards them."""
    e, trained = settings.compute_bytes, num_trained(shape, settings)
    frozen = _frozen_bytes(shape, settings)
    if settings.zero_stage:
        # weights have 16 bits; DeepSpeed updates float32 copies of them
        master = _MASTER_BYTES if settings.half else 0
        weights, gradients = trained * e, trained * e
        optimizer = trained * (_STATES_BYTES + master)
    else:
        weights, gradients = trained * 4, trained * 4
        optimizer = trained * _STATES_BYTES
        if settings.half and settings.trained == ALL:
            frozen += trained * e  # autocast caches converted weights
        elif settings.half and shape.tower is not None and _tunes_weights(settings):
            frozen += shape.tower.num_tuned(settings.tower_tuning) * e
    if settings.offloads:
        return 0.0, 0.0, 0.0
    shards = [settings.num_devices if settings.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return (weights + frozen) / shards[0], gradients / shards[1], optimizer / shards[2]


def _frozen_bytes(shape: ModelShape, settings: StageSettings) -> float:
    """Returns the bytes of a frozen language model."""
    if settings.trained == ALL:
        return 0.0
    model = shape.language_model
    if settings.bits == 16:
        return model.num_parameters * settings.compute_bytes
    # peft converts all weights that are not quantized to float32
    rest = model.num_in_embeddings + model.num_in_norms
    return model.num_in_matrices * _BYTES_OF_BITS[settings.bits] + rest * 4


def _image_parts(shape: ModelShape, settings: StageSettings) -> tuple[float, float, float]:
    """Returns the tower's frozen weights, the projector's activations, images and tower outputs.

    The projector saves the inputs of its two matrices and of GELU, and the spliced embeddings.
    Images take float32 at worst. For what a trained tower saves see `_tower_activations`.
    """
    tower, e = shape.tower, settings.compute_bytes
    if tower is None:
        return 0.0, 0.0, 0.0
    width = tower.hidden_size + 2 * shape.language_model.hidden_size
    kept = settings.num_images * shape.num_image_tokens * width * e
    pixels = 0 if settings.caches_features else 4 * tower.num_pixels
    outputs = tower.num_patches * tower.hidden_size * e
    frozen = tower.num_parameters * e
    if _tunes_weights(settings):
        # the rest of a tower in training has its dtype
        rest = tower.num_parameters - tower.num_tuned(settings.tower_tuning)
        frozen = rest * (e if settings.zero_stage else 4)
    return frozen, kept, settings.num_images * (pixels + outputs)


def _tunes_weights(settings: StageSettings) -> bool:
    """Tells whether the tower's own weights are trained."""
    return settings.tower_tuning is not None and not settings.tower_tuning.lora_rank


def _tower_activations(
    tower: TowerShape | TowersShape | None, settings: StageSettings
) -> tuple[float, float]:
    """Returns what a trained tower saves, as blocks of a decoder, and a recomputed block."""
    tuning = settings.tower_tuning
    if tower is None or tuning is None:
        return 0.0, 0.0
    trained = ADAPTERS if tuning.lora_rank else ALL
    as_stage = replace(settings, trained=trained, lora_rank=tuning.lora_rank)
    found = [
        _activations(
            _tuned_blocks(part, tuning),
            as_stage,
            settings.num_images * (part.num_patches + part.num_before_patches),
        )
        for part in tower.parts
    ]
    return sum(kept for kept, _ in found), max(block for _, block in found)


def _tuned_blocks(tower: TowerShape, tuning: TowerTuning) -> LanguageModelShape:
    """Returns the trained blocks of a tower as those of a decoder, without their parameters."""
    width, inner, heads = tower.hidden_size, tower.intermediate_size, tower.num_heads
    num_layers = tower.num_layers_tuned(tuning)
    linears = ((width, width),) * 4 + ((width, inner),) * (1 + tower.is_gated) + ((inner, width),)
    return LanguageModelShape(
        vocab_size=0,
        hidden_size=width,
        intermediate_size=inner,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        is_gated=tower.is_gated,
        is_tied=False,
        linear_sizes=linears * num_layers,
        num_in_matrices=0,
        num_visited=0,
        num_in_embeddings=0,
        num_parameters=0,
    )


def _activations(
    model: LanguageModelShape, settings: StageSettings, tokens: float
) -> tuple[float, float]:
    """Returns the saved activations of blocks and last norm, and those of a recomputed block."""
    r, layer = settings.stream_bytes, _layer_bytes(model, settings)
    last_norm = model.hidden_size * (4 + r + settings.compute_bytes)
    kept = r * model.hidden_size if settings.checkpointing else layer
    block = tokens * layer if settings.checkpointing else 0.0
    # the adapted experts of a layer are computed as weights, which have gradients
    experts = settings.lora_experts * model.num_in_experts * settings.compute_bytes
    of_layer, saved = experts / max(model.num_layers, 1), 0 if settings.checkpointing else experts
    return tokens * (kept * model.num_layers + last_norm) + saved, block + 2 * of_layer


def _layer_bytes(model: LanguageModelShape, settings: StageSettings) -> float:
    """Returns the bytes that a block saves per position."""
    e, r, width, inner = (
        settings.compute_bytes, settings.stream_bytes, model.hidden_size, model.intermediate_size,
    )  # fmt: skip
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    trains_matrices = settings.trained == ALL
    # a frozen linear layer saves nothing, a frozen norm not its output
    linear_inputs = e if trains_matrices else 0
    # SDPA saves queries, keys, values, its output (the input of the next matrix) and sums
    attention = e * (2 * queries + 2 * keys) + 4 * model.num_heads
    if not model.is_gated:
        # LayerNorm, GELU and the two matrices save their inputs
        mlp = (e + linear_inputs) * inner
        norms = 2 * (r + linear_inputs) * width
        return norms + attention + mlp + _adapter_bytes(model, settings)
    norms = 2 * width * (4 + (r if trains_matrices else 0) + linear_inputs)
    mlp = inner * (3 * e + linear_inputs)
    return norms + attention + mlp + _adapter_bytes(model, settings)


def _adapter_bytes(model: LanguageModelShape, settings: StageSettings) -> float:
    """Returns what LoRA saves per position: inputs after dropout, and the masks of dropout."""
    if settings.trained != ADAPTERS:
        return 0.0
    e = settings.compute_bytes
    mask = 1 if settings.num_gpus else e  # on a CPU, the mask has the type of the input
    inputs = sum(rows for rows, _ in model.linear_sizes)
    ranks = settings.lora_rank * len(model.linear_sizes)
    return (inputs * (e + mask) + ranks * e) / model.num_layers


def _logits(
    model: LanguageModelShape, settings: StageSettings, tokens: float, supervised: float
) -> float:
    if not settings.selects_logits:
        return tokens * model.vocab_size * _LOGIT_BYTES
    logits = supervised * model.vocab_size
    if settings.zero_stage < 3:  # with ZeRO-3, the loss is not chunked
        logits = min(logits, MAX_CHUNK_LOGITS)
    return logits * _LOGIT_BYTES + supervised * model.hidden_size * settings.stream_bytes


def _buffers(model: LanguageModelShape, settings: StageSettings) -> float:
    """Returns the bytes of communication buffers and of the CUDA context."""
    if not settings.num_gpus:
        return 0.0
    buffers = CONTEXT_BYTES + (NCCL_BYTES if settings.num_gpus > 1 else 0)
    if settings.zero_stage == 3:
        # two blocks in flight, embeddings and head, and parameters kept for reuse
        layers = 2 * model.num_in_matrices / model.num_layers + model.num_in_embeddings
        live = min(model.num_parameters, layers + 1e9)
        buffers += live * settings.compute_bytes
    return buffers
