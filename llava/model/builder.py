"""Loads a checkpoint for inference: `load_pretrained_model`.

In: a folder or Hub id of a whole model, of a projector (`mm_projector.bin`) or of LoRA adapters,
the last two with their base model. Out: tokenizer, model, image processor and context length. What
a checkpoint is, and which class it is loaded with, is read from its own files (`config.json`,
`adapter_config.json`). The folder's name is asked only where they leave the language model open.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llava.chat_format import ChatFormat
from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import (
    PROJECTOR_FILE,
    MultimodalConfig,
    carries,
    carries_tower,
    check_complete,
    context_limit,
    find_file,
    kind_of,
    read_config,
    tensor_names,
    weight_paths,
)
from llava.model.families import (
    NOT_QUANTIZED,
    text_part,
)
from llava.model.language_model.causal_lm import model_class_of
from llava.model.multimodal_encoder.families import portable_tower
from llava.model.multimodal_projector.builder import (
    load_adapter,
    read_tensors,
)
from llava.model.tokenizer import (
    TOKENIZER_FILES,
    add_image_tokens,
    copy_token_rows,
    load_tokenizer,
    resize_to_tokenizer,
)

log = logging.getLogger(__name__)

DEFAULT_CONTEXT_LEN = 2048
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# parts of the names of weights that a base language model does not have
_MULTIMODAL_KEYS = ("mm_projector.", "image_newline")


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Loads a model and what is needed to talk to it.

    Args:
        model_path: Checkpoint, a folder (of any name) or a Hub id.
        model_base: Base model of a projector or of LoRA adapters; None for a whole model.
        model_name: The name shown to people. It decides only where `config.json` leaves open which
            language model it is (`mistral`, `mpt`, else Llama); another mismatch is logged.
        load_8bit: Quantise to 8 bits (bitsandbytes).
        load_4bit: Quantise to 4 bits, NF4 with double quantisation (bitsandbytes).
        device_map: As in transformers; used on "cuda" only, elsewhere all goes to `device`.
        device: "cuda", "cpu", "mps", ...; without a CUDA device "cuda" becomes "cpu".
        use_flash_attn: Use flash-attn where it is installed, else SDPA.
        **kwargs: For `from_pretrained`; `dtype` (or `torch_dtype`) overrides float16, or float32
            on a CPU.

    Returns:
        (tokenizer, model, image_processor, context_len): `image_processor` is None for a text-only
        model; `context_len` is in tokens.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete or does not fit.
        ConfigError: A base model or a package is missing, or the format is not supported.
    """
    kind, given_base = kind_of(model_path), model_base
    model_base = _base_of(kind, model_path, model_base)
    config = read_config(model_path) or read_config(model_base or model_path) or {}
    model_class = model_class_of(config, model_path, model_name)
    _compare_with_name(model_name, kind, multimodal=model_class is not None)
    _check_weights(model_path, model_base, config)
    keywords = _keywords(load_8bit, load_4bit, device_map, device, use_flash_attn, kwargs)
    tokenizer = load_tokenizer(_tokenizer_of(model_path, model_base, given_base))
    if (stored := (config.get("conversation") or {}).get("chat_template")) is not None:
        ChatFormat.from_dict(stored).apply_to(tokenizer)  # it may be the base's
    if model_class is None:
        model, _ = _from_pretrained(AutoModelForCausalLM, model_base or model_path, **keywords)
    else:
        model, missing = _load_multimodal(model_class, model_path, model_base, keywords)
        num_new = _fit_tokens(model, tokenizer)
        if kind == "projector":
            _load_projector_file(model, find_file(model_path, PROJECTOR_FILE), num_new)
        elif kind == "lora":
            _load_non_lora(model, model_path, missing)
    # before adapters are merged, which the tower may have, too
    image_processor = None if model_class is None else _place_tower(model)
    if kind == "lora":
        model = _merge_lora(model, model_path)
    return tokenizer, model.eval(), image_processor, _context_len(model.config)


def _base_of(kind: str, model_path: str, model_base: str | None) -> str | None:
    """Returns the base model to load, or None for a whole model.

    Raises:
        ConfigError: One is needed and not named.
    """
    if kind == "full":
        if model_base is not None:
            log.warning(
                "%s is a whole model: of the base %s, at most the tokenizer is used",
                model_path, model_base,
            )  # fmt: skip
        return None
    if model_base is None and kind == "lora":
        adapter = read_config(model_path, "adapter_config.json") or {}
        model_base = adapter.get("base_model_name_or_path")
        if model_base is not None:
            log.warning("no base model given: taking %s from adapter_config.json", model_base)
    if model_base is None:
        what = "a projector" if kind == "projector" else "LoRA adapters"
        raise ConfigError(f"{model_path} holds {what} only: name its base with --model-base")
    return model_base


def _check_weights(model_path: str, model_base: str | None, config: dict[str, Any]) -> None:
    """Checks the files with the weights, as far as their headers tell.

    Raises:
        CheckpointError: They are incomplete, or do not go with `config.json`.
    """
    for folder in (model_path, model_base):
        if folder is not None and Path(folder).is_dir():
            check_complete(Path(folder))
    if not config.get("mm_vision_tower") and carries(model_path, "mm_projector."):
        raise CheckpointError(
            f"{model_path}: its weights hold a projector, but config.json names no vision tower: "
            "set mm_vision_tower there to the tower's folder or Hub id, and "
            "mm_vision_select_layer (most have -2)"
        )


def _tokenizer_of(model_path: str, model_base: str | None, given_base: str | None) -> str:
    """Returns where the tokenizer is: whole models may come without one, as Maya's do."""
    has_own = any(find_file(model_path, name) for name in TOKENIZER_FILES)
    return model_base or (model_path if has_own or given_base is None else given_base)


def _compare_with_name(model_name: str, kind: str, multimodal: bool) -> None:
    """Warns where the name, by which LLaVA decides, contradicts the files."""
    name = model_name.lower()
    if "llava" in name and not multimodal:
        log.warning("%s is loaded as a text-only model: its config.json has no tower", model_name)
    if "lora" in name and kind != "lora":
        log.warning("%s is loaded as it is: it has no adapter_config.json", model_name)


def _keywords(
    load_8bit: bool,
    load_4bit: bool,
    device_map: Any,
    device: str,
    use_flash_attn: bool,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Returns the keywords for `from_pretrained`.

    Raises:
        ConfigError: A package is missing, or two quantisations were asked for.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("no CUDA device found: loading on the CPU")
        device = "cpu"
    keywords = {"device_map": device_map if device == "cuda" else {"": device}, **kwargs}
    default_dtype = torch.float32 if device == "cpu" else torch.float16
    dtypes = [keywords.pop(name, None) for name in ("torch_dtype", "dtype")]
    keywords["dtype"] = next(filter(None, dtypes), default_dtype)
    if load_8bit and load_4bit:
        raise ConfigError("8-bit and 4-bit loading exclude each other: choose one")
    if load_8bit or load_4bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "4- and 8-bit loading need bitsandbytes: pip install bitsandbytes "
                "(or 'lrm-llava[gpu]'), or load without --load-4bit/--load-8bit"
            )
        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=list(NOT_QUANTIZED),
        )
    if use_flash_attn and importlib.util.find_spec("flash_attn") is None:
        log.warning("flash-attn is not installed: using SDPA")
    elif use_flash_attn:
        keywords["attn_implementation"] = "flash_attention_2"
    return keywords


def _from_pretrained(
    model_class: Any, path: str, may_miss: Sequence[str] = (), **keywords: Any
) -> tuple[Any, set[str]]:
    """Loads `path` and returns the model and which of the weights in `may_miss` are missing.

    Args:
        model_class: What to load.
        path: Folder or Hub id.
        may_miss: Parts of the names of weights that come from elsewhere.
        **keywords: For the class.

    Raises:
        CheckpointError: Unreadable, shapes differ, or weights are missing that may not.
    """
    try:
        # mismatches are not ignored: the error below names them
        model, info = model_class.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **keywords
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    unexpected = sorted(info["unexpected_keys"])
    where = f"{path} ({', '.join(file.name for file in weight_paths(path))})"
    if mismatched := sorted(info["mismatched_keys"]):
        shown = [f"{key}: {tuple(has)}, expected {tuple(wants)}" for key, has, wants in mismatched]
        raise CheckpointError(
            f"{where}: {len(mismatched)} weights do not fit config.json, e.g. "
            f"{'; '.join(shown[:3])}. The weights or config.json are another model's"
        )
    missing = set(info["missing_keys"])
    from_elsewhere = {key for key in missing if any(part in key for part in may_miss)}
    _refuse_missing(where, missing - from_elsewhere, unexpected)
    if unexpected:
        log.warning("%s: %d weights not used, e.g. %s", path, len(unexpected), unexpected[:3])
    return model, from_elsewhere


def _refuse_missing(where: str, missing: set[str], unexpected: Sequence[str] = ()) -> None:
    reason = "the checkpoint is incomplete"
    if unexpected:
        reason = (
            f"it holds {len(unexpected)} others, e.g. {list(unexpected[:3])}: the weights or "
            "config.json are another model's"
        )
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} weights are missing, e.g. {sorted(missing)[:5]}; {reason}"
        )


def _load_multimodal(
    model_class: Any, model_path: str, model_base: str | None, keywords: dict[str, Any]
) -> tuple[Any, set[str]]:
    """Loads a whole model, or the base under the configuration of `model_path`.

    Returns:
        The model, and which multimodal weights the base does not hold.
    """
    if model_base is None:
        config = read_model_config(model_class, model_path)
        return _from_pretrained(model_class, model_path, config=config, **keywords)
    has_config = find_file(model_path, "config.json") is not None
    source = model_path if has_config else model_base
    config = copy.deepcopy(read_model_config(model_class, source))
    if hasattr(config, "mm_vision_tower"):
        # the resulting model is no longer beside its tower
        config.mm_vision_tower = portable_tower(config.mm_vision_tower, source)
    # training may have added tokens, which the base does not hold
    vocab_size = config.vocab_size
    base_config = text_part(read_config(model_base) or {}, model_base)
    config.vocab_size = base_config.get("vocab_size", vocab_size)
    tuned = _release_tower(config, model_path, model_base)
    model, missing = _from_pretrained(
        model_class, model_base, _MULTIMODAL_KEYS, config=config, **keywords
    )
    model.config.update(tuned)
    resize_to_tokenizer(model, vocab_size)
    return model, missing


def _release_tower(config: Any, model_path: str, model_base: str) -> dict[str, Any]:
    """Lets a base without a tower load under the configuration of a run that tuned the tower.

    Args:
        config: Its keys that say so are reset if the base does not carry the tower.
        model_path: Projector or adapters.
        model_base: Their base.

    Returns:
        The keys with their values, to be set again on the model.

    Raises:
        CheckpointError: Neither the base nor the adapters hold the trained tower.
    """
    if not MultimodalConfig.from_config(config).tunes_tower or carries_tower(model_base):
        return {}
    path = next(filter(None, (find_file(model_path, name) for name in ADAPTER_FILES)), None)
    if not any("vision_tower." in name for name in (path and tensor_names(path)) or ()):
        raise CheckpointError(
            f"{model_path}: config.json says that the vision tower was trained, but neither its "
            f"files nor the base {model_base} hold the tower's weights: name the base that the "
            "training started from"
        )
    keys: dict[str, Any] = {"unfreeze_mm_vision_tower": False, "mm_tunable_parts": None}
    found = {key: getattr(config, key) for key in keys if hasattr(config, key)}
    config.update({key: keys[key] for key in found})
    return found


def _fit_tokens(model: Any, tokenizer: Any) -> int:
    """Adds the image tokens that the configuration names; returns how many are new."""
    settings = MultimodalConfig.from_config(model.config)
    if settings.mm_vision_tower is None:
        return 0
    num_new = add_image_tokens(
        tokenizer, settings.mm_use_im_patch_token, settings.mm_use_im_start_end
    )
    resize_to_tokenizer(model, len(tokenizer))
    return num_new


def _load_projector_file(model: Any, path: Path | None, num_new: int) -> None:
    assert path is not None
    tensors = load_adapter(model.get_model(), path)
    copy_token_rows(model, tensors, num_new, path)


def _load_non_lora(model: Any, model_path: str, missing: set[str]) -> None:
    """Loads what LoRA training changed besides the adapters (projector, perhaps embeddings).

    Raises:
        CheckpointError: The file does not fit, or is missing and the base has no projector.
    """
    path = find_file(model_path, NON_LORA_FILE)
    tensors = {} if path is None else read_tensors(path)
    tensors = {key.removeprefix("base_model."): value for key, value in tensors.items()}
    if any(key.startswith("model.model.") for key in tensors):
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    result = model.load_state_dict(tensors, strict=False)
    if result.unexpected_keys:
        raise CheckpointError(f"{path}: weights of another model: {result.unexpected_keys[:3]}")
    _refuse_missing(f"{model_path} ({NON_LORA_FILE})", missing - set(tensors))


def _merge_lora(model: Any, model_path: str) -> Any:
    """Merges the adapters into the model's weights.

    Raises:
        ConfigError: `peft` is not installed.
        CheckpointError: The adapters are unreadable.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError("LoRA adapters need peft: pip install peft") from error
    try:
        return PeftModel.from_pretrained(model, model_path).merge_and_unload()
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{model_path}: cannot load its adapters: {error}") from error


def _place_tower(model: Any) -> Any:
    """Loads the tower if the checkpoint did not carry it; returns its image processor."""
    tower = model.get_vision_tower()
    if tower is None:
        return None
    if not tower.is_loaded:
        tower.load_model()
        # one dtype for the whole model, whatever the dtype of the tower's files
        tower.to(device=model.get_input_embeddings().weight.device, dtype=model.dtype)
    return tower.image_processor


def _context_len(config: Any) -> int:
    """Returns LLaVA's context length, but never more than the model has positions."""
    longest = MultimodalConfig.from_config(config).max_sequence_length
    positions = context_limit(config) or DEFAULT_CONTEXT_LEN
    return min(DEFAULT_CONTEXT_LEN, positions) if longest is None else longest


def read_model_config(model_class: Any, path: str | None) -> Any:
    """Reads `config.json` into the class's configuration.

    Raises:
        CheckpointError: A value has the wrong type.
    """
    try:
        return model_class.config_class.from_pretrained(path)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json: {error}") from error
