"""Build what is trained: language model, tokenizer, vision modules, LoRA adapters.

Input: the flags. Output: a model on its way into the trainer, its tokenizer, image processor and
conversation template. `train.py` calls these functions one after the other.
Non-goals: what is frozen (`freeze.py`), data (`llava.data`), the training loop.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from llava import conversation as conversation_lib
from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conversation_to_dict,
    get_conversation,
)
from llava.errors import CheckpointError, ConfigError
from llava.model.builder import model_class_of
from llava.model.checkpoint import check_complete, kind_of, read_config
from llava.model.language_model.causal_lm import PACKED_SDPA
from llava.model.multimodal_projector.builder import PROJECTOR_FILE
from llava.model.tokenizer import load_tokenizer, resize_to_tokenizer
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

log = logging.getLogger(__name__)

# what some models keep free for padding, best first
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|reserved_special_token_0|>")
MULTIMODAL_PARTS = ("mm_projector", "vision_tower", "vision_resampler")
VICUNA_VERSIONS = ("v0", "v0.5")


def set_up_logging() -> None:
    """Log to stderr: everything of ours on the first rank, errors elsewhere."""
    is_first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    for name in ("llava", "lrm_ext", "__main__"):  # what `python -m` runs has the last name
        logging.getLogger(name).setLevel(logging.INFO if is_first else logging.ERROR)


def load_dtype(model_args: ModelArguments, training_args: TrainingArguments) -> torch.dtype:
    """The dtype of the language model's weights.

    A model that is trained as a whole needs float32 weights to step on: small updates vanish in 16
    bits. DeepSpeed keeps such a copy itself; elsewhere the weights are float32 and autocast
    computes in 16 bits.
    """
    compute = training_args.compute_dtype
    is_frozen = (
        model_args.tune_mm_mlp_adapter or training_args.lora_enable or training_args.bits < 16
    )
    if is_frozen or training_args.deepspeed:
        return compute
    if compute != torch.float32:
        log.info("weights are kept in float32, the computation is in %s", compute)
    return torch.float32


def build_model(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    attn_implementation: str | None = None,
) -> Any:
    """Load the language model, or the LLaVA checkpoint, that training starts from.

    Args:
        model_args: `model_name_or_path`, `vision_tower`.
        training_args: dtype, quantisation and cache.
        attn_implementation: as in transformers; None leaves the choice to it.

    Returns:
        A causal language model of LLaVA's class if a tower is named, else a plain one.

    Raises:
        CheckpointError: the model cannot be read, or a part of its weights is missing.
        ConfigError: a kind of model that is not supported with images, or a projector of another
            kind than the checkpoint's.
    """
    path = str(model_args.model_name_or_path)
    config = read_config(path)
    if config is None:
        raise CheckpointError(f"{path}: there is no config.json; name a base model's folder")
    model_class: Any = AutoModelForCausalLM
    if training_args.packing and attn_implementation in (None, "sdpa"):
        attn_implementation = PACKED_SDPA
    options: dict[str, Any] = {
        "dtype": load_dtype(model_args, training_args),
        "attn_implementation": attn_implementation,
        "cache_dir": training_args.cache_dir,
    }
    if model_args.vision_tower is not None:
        where = f"--model_name_or_path {path}"
        model_class = model_class_of({**config, "mm_vision_tower": model_args.vision_tower}, where)
        _compare_with_checkpoint(config, model_args)
        # not from the folder: transformers would warn that the base is of another type
        kept = {key: value for key, value in config.items() if key != "model_type"}
        options["config"] = model_class.config_class.from_dict({**kept, "name_or_path": path})
    if training_args.bits < 16:
        options["device_map"] = {"": training_args.device}
        options["quantization_config"] = _quantization(training_args)
    if Path(path).is_dir():
        _refuse_parts(path)
        check_complete(Path(path))
    options = {key: value for key, value in options.items() if value is not None}
    model, info = model_class.from_pretrained(path, output_loading_info=True, **options)
    _refuse_gaps(path, info["missing_keys"])
    model.config.use_cache = False
    model.liger_loss = training_args.liger_loss
    if training_args.bits < 16:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(training_args.gradient_checkpointing)
        )
    _mend_generation_config(model)
    return model


def _refuse_parts(path: str) -> None:
    """Refuse a folder that holds only what a stage trained on top of another model.

    Raises:
        CheckpointError: saying how to go on from it.
    """
    found = {
        "lora": "LoRA adapters, not a whole model. Merge them with their base first: python "
        f"scripts/merge_lora_weights.py --model-path {path} --model-base BASE --save-model-path "
        "FOLDER",
        "projector": "a projector, not a whole model. Name its base model there, and "
        f"--pretrain_mm_mlp_adapter {path}/{PROJECTOR_FILE}",
    }.get(kind_of(path))
    if found is not None:
        raise CheckpointError(f"--model_name_or_path {path} holds {found}")


def _compare_with_checkpoint(config: Mapping[str, Any], model_args: ModelArguments) -> None:
    """Warn of what the flags replace in a LLaVA checkpoint that training starts from.

    Raises:
        ConfigError: the checkpoint's projector is of another kind; config.json would say the
            flag's kind of the checkpoint's weights.
    """
    if not config.get("mm_vision_tower"):
        return
    path = model_args.model_name_or_path
    projector = config.get("mm_projector_type", "linear")
    if projector != model_args.mm_projector_type:
        raise ConfigError(
            f"--mm_projector_type is {model_args.mm_projector_type}, but {path} has a projector of "
            f"type {projector}: give --mm_projector_type {projector}"
        )
    told = []
    if model_args.pretrain_mm_mlp_adapter is not None:
        told.append(
            f"--pretrain_mm_mlp_adapter {model_args.pretrain_mm_mlp_adapter} replaces its trained "
            "projector; leave the flag out to keep that"
        )
    template, tower = config.get("conversation") or {}, config["mm_vision_tower"]
    name = template.get("name") if isinstance(template, Mapping) else template
    is_same_tower = Path(tower).name == Path(str(model_args.vision_tower)).name
    trained_with = {
        "version": name,
        "vision_tower": None if is_same_tower else tower,
        "mm_vision_select_layer": config.get("mm_vision_select_layer"),
    }
    for flag, was in trained_with.items():
        if was not in (None, "", now := getattr(model_args, flag)):
            told.append(f"it was trained with --{flag} {was}, not {now}")
    if told:
        log.warning("--model_name_or_path %s is a trained model: %s", path, "; ".join(told))


def _refuse_gaps(path: str, missing: Iterable[str]) -> None:
    """Refuse a base whose language model would start from random weights.

    Raises:
        CheckpointError: naming some of the weights.
    """
    # what training itself adds
    added = (*MULTIMODAL_PARTS, "image_newline")
    gaps = sorted(key for key in missing if not any(part in key for part in added))
    if gaps:
        raise CheckpointError(
            f"--model_name_or_path {path}: {len(gaps)} weights are missing, e.g. {gaps[:5]}; the "
            "checkpoint is incomplete or its config.json is another model's"
        )


def _quantization(training_args: TrainingArguments) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=training_args.bits == 4,
        load_in_8bit=training_args.bits == 8,
        llm_int8_skip_modules=["mm_projector"],
        llm_int8_threshold=6.0,
        llm_int8_has_fp16_weight=False,
        bnb_4bit_compute_dtype=training_args.compute_dtype,
        bnb_4bit_use_double_quant=training_args.double_quant,
        bnb_4bit_quant_type=training_args.quant_type,
    )


def _mend_generation_config(model: Any) -> None:
    """Make a generation configuration savable.

    Vicuna's sets a temperature without sampling, which transformers refuses to write at the end.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def build_tokenizer(
    model_args: ModelArguments, training_args: TrainingArguments, model: Any
) -> tuple[Any, Conversation]:
    """Load the tokenizer, give it a pad token, and choose the conversation template.

    Args:
        model_args: `model_name_or_path` and `version`. The versions `v0` and `v0.5` keep
            `llava.conversation.default_conversation`, which is `vicuna_v1`, as in LLaVA.
        training_args: `model_max_length`.
        model: gets a row of embeddings if the pad token is new.

    Raises:
        TemplateError: there is no template of that name; the choices are listed.
        CheckpointError: there is no tokenizer.
    """
    version = str(model_args.version)
    keeps_default = version in VICUNA_VERSIONS
    conv = conversation_lib.default_conversation if keeps_default else get_conversation(version)
    tokenizer = load_tokenizer(
        str(model_args.model_name_or_path),
        model_max_length=training_args.model_max_length,
        padding_side="right",
        cache_dir=training_args.cache_dir,
    )
    has_unk = tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token
    if version == "v0":
        if tokenizer.pad_token is None:
            smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    elif has_unk:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        _choose_pad_token(tokenizer, model)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
    warn_of_template(conv, tokenizer, version)
    return tokenizer, conv


_TWO_ROUNDS = (
    ("user", "Hello."),
    ("assistant", "Good day."),
    ("user", "Why?"),
    ("assistant", "So."),
)


def warn_of_template(conv: Conversation, tokenizer: Any, name: str) -> None:
    """Warn where a tokenizer speaks another chat format than the template. It never fails.

    Args:
        conv: The template that training uses.
        tokenizer: Of the language model.
        name: The template's name, for the message.
    """
    if conv.sep_style is SeparatorStyle.PLAIN:
        return
    has_two = conv.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
    stop = (conv.sep2 if has_two else conv.sep) or ""
    told = []
    num_tokens = len(tokenizer(stop, add_special_tokens=False).input_ids)
    if num_tokens != 1:
        told.append(
            f"its answers end with {stop!r}, which is {num_tokens} tokens for this tokenizer "
            f"(its own end is {tokenizer.eos_token!r})"
        )
    theirs, ours = _second_round(tokenizer), _second_round_of(conv)
    # blanks apart: LLaVA's templates have other ones than Mistral's, and learn them
    if theirs and "".join(theirs.split()) != "".join(ours.split()):
        told.append(f"it writes a round as {ours!r}, the tokenizer's chat template as {theirs!r}")
    if told:
        log.warning(
            "--version %s may not fit this language model: %s. docs/training.md has a table of "
            "models and templates",
            name,
            "; ".join(told),
        )


def _second_round_of(conv: Conversation) -> str:
    """What a template writes for the second question and its answer."""
    prompts = []
    for end in (2, 4):
        copy = conv.copy()
        for i, (_, text) in enumerate(_TWO_ROUNDS[:end]):
            copy.append_message(copy.roles[i % 2], text)
        prompts.append(copy.get_prompt())
    return prompts[1].removeprefix(prompts[0])


def _second_round(tokenizer: Any) -> str | None:
    """The same by the tokenizer's own chat template; None if it has none that can be compared."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": role, "content": text} for role, text in _TWO_ROUNDS]
    try:
        first, both = (
            tokenizer.apply_chat_template(messages[:end], tokenize=False) for end in (2, 4)
        )
    except Exception as error:  # whatever a model's own Jinja may raise
        log.debug("the tokenizer's chat template cannot be compared: %s", error)
        return None
    return both.removeprefix(first) if both.startswith(first) else None


def _choose_pad_token(tokenizer: Any, model: Any) -> None:
    """Pad with something that no text holds; with EOS the end of answers would be masked."""
    vocabulary = tokenizer.get_vocab()
    known = next((token for token in PAD_TOKENS if token in vocabulary), None)
    if known is not None:
        tokenizer.pad_token = known
    elif tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: dict[str, str], tokenizer: Any, model: Any
) -> None:
    """Add special tokens; their embeddings are the mean of the old ones.

    Args:
        special_tokens_dict: such as `{"pad_token": "[PAD]"}`.
        tokenizer: gets the tokens.
        model: both embedding tables grow where the tokenizer outgrows them.
    """
    tokenizer.add_special_tokens(special_tokens_dict)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        resize_to_tokenizer(model, len(tokenizer))


def add_vision(
    model: Any,
    tokenizer: Any,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> Any:
    """Give the model its tower and projector, and LLaVA's arguments what they carry later on.

    Returns:
        The tower's image processor; None for a text-only model.

    Raises:
        CheckpointError: tower or projector file cannot be read or do not fit.
    """
    training_args.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter  # type: ignore[attr-defined]
    training_args.use_im_start_end = model_args.mm_use_im_start_end  # type: ignore[attr-defined]
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end  # type: ignore[attr-defined]
    if model_args.vision_tower is None:
        data_args.image_processor = None  # type: ignore[attr-defined]
        return None
    model.get_model().initialize_vision_modules(model_args, fsdp=training_args.fsdp)
    tower = model.get_vision_tower()
    if not any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        tower.to(dtype=training_args.compute_dtype, device=training_args.device)
    if training_args.bits < 16:
        model.get_model().mm_projector.to(
            dtype=training_args.compute_dtype, device=training_args.device
        )
    if model_args.mm_use_im_patch_token or model_args.mm_use_im_start_end:
        model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    data_args.image_processor = tower.image_processor  # type: ignore[attr-defined]
    data_args.is_multimodal = True
    return tower.image_processor


def compile_layers(model: nn.Module) -> None:
    """Let `torch.compile` compile each layer of the language model, for any length.

    Not the model as a whole: where pictures are put between the text, shapes depend on the data.
    """
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and "vision_tower" not in name:
            module.compile(dynamic=True)


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of the language model's linear layers, without its head."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in MULTIMODAL_PARTS)
    }
    return sorted(names - {"lm_head"})


def add_lora(model: Any, training_args: TrainingArguments) -> Any:
    """Wrap the model with LoRA adapters on the language model's linear layers, if asked for.

    Raises:
        ConfigError: peft refuses the settings.
    """
    if not training_args.lora_enable:
        return model
    from peft import LoraConfig, get_peft_model

    # by full path: the tower's attention has layers of the same short names
    layers = "|".join(find_all_linear_names(model))
    targets = rf"(?!.*({'|'.join(MULTIMODAL_PARTS)})).*\.({layers})"
    config = LoraConfig(
        r=training_args.lora_r,
        lora_alpha=training_args.lora_alpha,
        target_modules=targets,
        lora_dropout=training_args.lora_dropout,
        bias=training_args.lora_bias,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be set up: {error}") from error


def write_config(
    model: Any,
    tokenizer: Any,
    conv: Conversation,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Record in `config.json` what training decided; readers need no flags then.

    `initialize_vision_modules` has written the keys of tower and projector.
    """
    keys: dict[str, Any] = {
        "conversation": conversation_to_dict(conv),
        "tokenizer_padding_side": tokenizer.padding_side,
        "tokenizer_model_max_length": tokenizer.model_max_length,
    }
    if model_args.vision_tower is not None:
        keys |= {
            "image_aspect_ratio": data_args.image_aspect_ratio,
            "tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
            "freeze_mm_mlp_adapter": training_args.freeze_mm_mlp_adapter,
            "mm_use_im_start_end": model_args.mm_use_im_start_end,
            "mm_use_im_patch_token": model_args.mm_use_im_patch_token,
            "mm_projector_lr": training_args.mm_projector_lr,
        }
    for key, value in keys.items():
        setattr(model.config, key, value)
