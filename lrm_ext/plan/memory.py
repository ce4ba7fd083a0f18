"""How much memory a training step takes on one device, by part.

Input: a model's sizes and the settings of a stage. Output: bytes. Counted is what lies in memory
early in the backward pass: weights, gradients, the optimizer's states, what the forward pass keeps,
and either the loss at its widest or a block that is computed again, for they do not meet. The
formulas count the tensors that autograd saves in transformers' Llama with SDPA or flash attention;
a test holds them against steps that are measured. Non-goals: time and money (`plan.py`),
fragmentation (`FILL_LIMIT`).

Legend: e bytes of a number in computation, r bytes of a number in the residual stream.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields, replace

from llava.model.loss import MAX_CHUNK_LOGITS
from llava.train.flops import ADAPTERS, ALL, PROJECTOR, LanguageModelShape, ModelShape

# share of a GPU's memory that can be filled before fragmentation ends a run: published runs of LLM
# Foundry used 0.80 to 0.82 of what these formulas allow
FILL_LIMIT = 0.82
# the CUDA context, and NCCL's buffers
CONTEXT_BYTES, NCCL_BYTES = 1e9, 1e9
_MAX_BATCH = 2**20
_STATES_BYTES = 8  # Adam's two moments in float32
_MASTER_BYTES = 4
# of one logit at the widest moment of the loss: float32 log-probabilities and two gradients
_LOGIT_BYTES = 12
# 4 bits, and a doubly quantised scale for each 64 of them
_BYTES_OF_BITS = {4: 0.516, 8: 1.0}


@dataclass(frozen=True)
class StageSettings:
    """What decides the memory of a stage.

    Attributes:
        trained: PROJECTOR, ADAPTERS (and projector) or ALL.
        batch_size: Samples of a device in one micro-batch.
        accumulation: Micro-batches a step.
        num_gpus: Devices; 0 is a CPU.
        zero_stage: 0 (none, DDP), 1, 2 or 3.
        offloads: The optimizer's states and weights lie in the host's memory.
        half: Computation in 16 bits.
        checkpointing: Activations are computed again in the backward pass.
        lora_rank: Of the adapters.
        bits: Of frozen weights: 16, 8 or 4.
        caches_features: The tower's outputs are read, not computed.
        selects_logits: The loss computes logits of supervised positions only, in chunks.
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
    bits: int = 16
    caches_features: bool = False
    selects_logits: bool = True

    @property
    def num_devices(self) -> int:
        """Devices that work; a CPU counts as one."""
        return max(self.num_gpus, 1)

    @property
    def samples_a_step(self) -> int:
        """The global batch."""
        return self.batch_size * self.accumulation * self.num_devices

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in computation, e."""
        return 2 if self.half else 4

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number in the residual stream, r: float32 if autocast has float32 weights."""
        autocast = self.half and not self.zero_stage and self.trained == ALL
        return 4 if autocast else self.compute_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part.

    Attributes:
        weights: Of all parts of the model.
        gradients: Of what is trained.
        optimizer: Adam's moments and float32 copies of weights.
        activations: What the forward pass keeps for the backward pass.
        block: A block's activations that are computed again; 0 without checkpointing.
        logits: The loss at its widest, which is over when a block is computed again.
        image_features: Images or the tower's outputs.
        buffers: Gathered weights, communication, the CUDA context.
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
        """All that is there at once."""
        parts = sum(getattr(self, field.name) for field in fields(self))
        return parts - min(self.block, self.logits)


def estimate_memory(
    shape: ModelShape, settings: StageSettings, num_positions: float, num_supervised: float
) -> Memory:
    """Estimate the memory of a step.

    Args:
        shape: The model.
        settings: How it is trained.
        num_positions: Of a sample, the image's included.
        num_supervised: Of those, the ones that a loss is taken of.
    """
    tower, images_kept, images = _image_parts(shape, settings)
    weights, gradients, optimizer = _states(shape, settings)
    tokens = settings.batch_size * num_positions
    kept, block = _activations(shape.language_model, settings, tokens)
    supervised = settings.batch_size * num_supervised
    return Memory(
        weights + tower,
        gradients,
        optimizer,
        kept + images_kept,
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
    """Most samples of a micro-batch that fit a device; 0 if none does.

    Args:
        shape: The model.
        settings: How it is trained; its batch size is not looked at.
        num_positions: As for `estimate_memory`.
        num_supervised: As there.
        memory_bytes: Of the device.
    """

    def fits(batch_size: int) -> bool:
        changed = replace(settings, batch_size=batch_size)
        needed = estimate_memory(shape, changed, num_positions, num_supervised).total
        return needed <= FILL_LIMIT * memory_bytes

    # the sizes that fit come first, so the place of the first other one is their number
    return bisect_left(range(1, _MAX_BATCH), True, key=lambda size: not fits(size))


def num_trained(shape: ModelShape, settings: StageSettings) -> int:
    """Parameters that a stage trains."""
    language_model = {
        PROJECTOR: 0,
        ADAPTERS: shape.language_model.num_in_adapters(settings.lora_rank),
        ALL: shape.language_model.num_parameters,
    }[settings.trained]
    return language_model + shape.num_in_projector


def _states(shape: ModelShape, settings: StageSettings) -> tuple[float, float, float]:
    """All but the tower's weights, gradients and optimizer's states, as ZeRO deals them out."""
    e, trained = settings.compute_bytes, num_trained(shape, settings)
    frozen = _frozen_bytes(shape, settings)
    if settings.zero_stage:
        # weights are of 16 bits, DeepSpeed steps on float32 copies of them
        master = _MASTER_BYTES if settings.half else 0
        weights, gradients = trained * e, trained * e
        optimizer = trained * (_STATES_BYTES + master)
    else:
        weights, gradients = trained * 4, trained * 4
        optimizer = trained * _STATES_BYTES
        if settings.half and settings.trained == ALL:
            frozen += trained * e  # autocast keeps the weights it has converted
    if settings.offloads:
        return 0.0, 0.0, 0.0
    shards = [settings.num_devices if settings.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return (weights + frozen) / shards[0], gradients / shards[1], optimizer / shards[2]


def _frozen_bytes(shape: ModelShape, settings: StageSettings) -> float:
    """Weights of a language model that is frozen."""
    if settings.trained == ALL:
        return 0.0
    model = shape.language_model
    if settings.bits == 16:
        return model.num_parameters * settings.compute_bytes
    # peft's preparation makes float32 of all that is not quantised
    rest = model.num_in_embeddings + model.num_in_norms
    return model.num_in_matrices * _BYTES_OF_BITS[settings.bits] + rest * 4


def _image_parts(shape: ModelShape, settings: StageSettings) -> tuple[float, float, float]:
    """The tower's weights, what the projector keeps, and images with the tower's outputs.

    The projector keeps two inputs of matrices, GELU's, and the embeddings that are put together.
    Images are of float32 at worst; the tower's own activations are gone when they count.
    """
    tower, e = shape.tower, settings.compute_bytes
    if tower is None:
        return 0.0, 0.0, 0.0
    width = tower.hidden_size + 2 * shape.language_model.hidden_size
    kept = settings.batch_size * shape.num_image_tokens * width * e
    pixels = 0 if settings.caches_features else 3 * tower.image_size_px**2 * 4
    outputs = tower.num_patches * tower.hidden_size * e
    return tower.num_parameters * e, kept, settings.batch_size * (pixels + outputs)


def _activations(
    model: LanguageModelShape, settings: StageSettings, tokens: float
) -> tuple[float, float]:
    """What blocks and last norm keep, and what a block keeps while it is computed again."""
    r, layer = settings.stream_bytes, _layer_bytes(model, settings)
    last_norm = model.hidden_size * (4 + r + settings.compute_bytes)
    kept = r * model.hidden_size if settings.checkpointing else layer
    block = tokens * layer if settings.checkpointing else 0.0
    return tokens * (kept * model.num_layers + last_norm), block


def _layer_bytes(model: LanguageModelShape, settings: StageSettings) -> float:
    """Bytes that a block keeps for each position."""
    e, r, width, inner = (
        settings.compute_bytes, settings.stream_bytes, model.hidden_size, model.intermediate_size,
    )  # fmt: skip
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    trains_matrices = settings.trained == ALL
    # of a linear layer whose weights are frozen nothing is kept, of a frozen norm not its output
    linear_inputs = e if trains_matrices else 0
    # SDPA keeps queries, keys, values, its output (which is the next matrix's input), and sums
    attention = e * (2 * queries + 2 * keys) + 4 * model.num_heads
    if not model.is_gated:
        # LayerNorm keeps its input; GELU its input; two matrices theirs
        return 2 * (r + linear_inputs) * width + attention + (e + linear_inputs) * inner
    norms = 2 * width * (4 + (r if trains_matrices else 0) + linear_inputs)
    mlp = inner * (3 * e + linear_inputs)
    return norms + attention + mlp + _adapter_bytes(model, settings)


def _adapter_bytes(model: LanguageModelShape, settings: StageSettings) -> float:
    """What LoRA keeps of a position: each layer's input after dropout, and where it dropped."""
    if settings.trained != ADAPTERS:
        return 0.0
    e = settings.compute_bytes
    mask = 1 if settings.num_gpus else e  # a CPU's dropout keeps numbers
    inputs = sum(rows for rows, _ in model.linear_sizes)
    ranks = settings.lora_rank * len(model.linear_sizes)
    return inputs * (e + mask) + ranks * e


def _logits(
    model: LanguageModelShape, settings: StageSettings, tokens: float, supervised: float
) -> float:
    if not settings.selects_logits:
        return tokens * model.vocab_size * _LOGIT_BYTES
    logits = supervised * model.vocab_size
    if settings.zero_stage < 3:  # there the loss is not cut into chunks
        logits = min(logits, MAX_CHUNK_LOGITS)
    return logits * _LOGIT_BYTES + supervised * model.hidden_size * settings.stream_bytes


def _buffers(model: LanguageModelShape, settings: StageSettings) -> float:
    """What communication needs, and the CUDA context."""
    if not settings.num_gpus:
        return 0.0
    buffers = CONTEXT_BYTES + (NCCL_BYTES if settings.num_gpus > 1 else 0)
    if settings.zero_stage == 3:
        # two blocks in flight, embeddings and head, and what is kept to be used again
        layers = 2 * model.num_in_matrices / model.num_layers + model.num_in_embeddings
        live = min(model.num_parameters, layers + 1e9)
        buffers += live * settings.compute_bytes
    return buffers
