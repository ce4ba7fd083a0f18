"""Builds the model to train: language model, tokenizer, vision modules, LoRA adapters, freezing.

Input: the flags. Output: a model for the trainer, with `requires_grad` set on every parameter, its
tokenizer, image processor and conversation template. `train.py` calls these functions one after the
other. Rules of what is trained: the projector stage trains the projector alone; the fine-tuning
stage trains projector and language model; both train the newline of tiles, if there is one; the
tower is frozen in both, unless `--mm_tunable_parts` names it. Of the tower, only what the features
depend on is trained: the layers up to the selected one, or the last few of them, and what lies
before them.
Non-goals: data (`llava.data`), the training loop.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_flash_attn_2_available

import llava.conversation as conversation_lib
from llava.conversation import (
    AUTO,
    ChatConversation,
    Conversation,
    SeparatorStyle,
    chat_conversation,
    conversation_to_dict,
    get_conversation,
)
from llava.errors import CheckpointError, ConfigError
from llava.model.checkpoint import (
    LANGUAGE_PART,
    PROJECTOR_FILE,
    PROJECTOR_PART,
    TOWER_PART,
    MultimodalConfig,
    check_complete,
    kind_of,
    read_config,
    split_parts,
)
from llava.model.families import MULTIMODAL_PARTS, NOT_QUANTIZED, linear_layers, text_part
from llava.model.language_model.causal_lm import FLASH_ATTENTION, choose_attention, model_class_of
from llava.model.tiles import VIDEO_LAYOUT, Tiling
from llava.model.tokenizer import load_tokenizer, resize_to_tokenizer
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

log = logging.getLogger(__name__)

# tokens that models reserve for padding, best first
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|reserved_special_token_0|>")
VICUNA_VERSIONS = ("v0", "v0.5")


def set_up_logging() -> None:
    """Logs to stderr: all of our messages on the first rank, only errors on the others."""
    is_first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    # a module that `python -m` runs is called __main__
    for name in ("llava", "lrm_ext", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if is_first else logging.ERROR)


def memory_efficient_attention() -> str:
    """Returns `flash_attention_2` if flash-attn and a GPU for it are available, else `sdpa`."""
    problem = None
    if not is_flash_attn_2_available():
        problem = "flash-attn or a GPU is missing"
    elif torch.cuda.get_device_capability() < (8, 0):
        problem = f"flash-attn needs a newer GPU than {torch.cuda.get_device_name()}"
    else:
        try:
            importlib.import_module("flash_attn")
        except (ImportError, OSError) as error:  # compiled for another torch or CUDA
            problem = f"flash-attn is installed, but cannot be imported: {error}"
    if problem is not None:
        log.info("attention: sdpa (%s)", problem)
        return "sdpa"
    return FLASH_ATTENTION


def _attention_for(wanted: str | None, dtype: torch.dtype) -> str | None:
    """Returns the attention that is wanted, or `sdpa` if it does not compute in this dtype."""
    if wanted == FLASH_ATTENTION and dtype == torch.float32:
        log.info("attention: sdpa (flash-attn computes in 16 bits only: --bf16 True)")
        return "sdpa"
    return wanted


def load_dtype(model_args: ModelArguments, training_args: TrainingArguments) -> torch.dtype:
    """Returns the dtype of the language model's weights.

    A fully trained model needs float32 weights, because small updates vanish in 16 bits. DeepSpeed
    keeps its own float32 copy; otherwise the weights are float32 and autocast computes in 16 bits.
    """
    compute = training_args.compute_dtype
    is_trained = {LANGUAGE_MODEL, HEAD} & trained_parts(model_args, training_args)
    if not is_trained or training_args.bits < 16 or training_args.deepspeed:
        return compute
    if compute != torch.float32:
        log.info("weights are kept in float32, the computation is in %s", compute)
    return torch.float32


def build_model(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    attn_implementation: str | None = None,
) -> Any:
    """Loads the language model, or the LLaVA checkpoint, that training starts from.

    Args:
        model_args: `model_name_or_path`, `vision_tower`.
        training_args: dtype, quantization and cache.
        attn_implementation: See transformers, which chooses one by default.

    Returns:
        A causal language model of LLaVA's class if a tower is named, else a plain one.

    Raises:
        CheckpointError: The model cannot be read, or some of its weights are missing.
        ConfigError: The kind of model is not supported with images, or its projector has another
            type than the flags say.
    """
    path = str(model_args.model_name_or_path)
    config = read_config(path)
    if config is None:
        raise CheckpointError(f"{path}: there is no config.json; name a base model's folder")
    model_class: Any = AutoModelForCausalLM
    options: dict[str, Any] = {
        "dtype": load_dtype(model_args, training_args),
        "attn_implementation": _attention_for(attn_implementation, training_args.compute_dtype),
        "cache_dir": training_args.cache_dir,
    }
    if model_args.vision_tower is not None:
        where = f"--model_name_or_path {path}"
        config = text_part(config, where)
        model_class = model_class_of({**config, "mm_vision_tower": model_args.vision_tower}, where)
        _compare_with_checkpoint(config, model_args)
        options["attn_implementation"] = choose_attention(
            model_class, options["attn_implementation"], training_args.packing
        )
        # from the dict, because transformers would warn of the base's other model type
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
    """Refuses a folder that has only what a stage trained on top of another model.

    Raises:
        CheckpointError: The folder is one; the message says how to use it.
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
    """Warns about parts of a LLaVA checkpoint that the flags replace.

    Raises:
        ConfigError: The checkpoint's projector has another type than the flag, so config.json would
            not describe its weights.
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
        "mm_patch_merge_type": config.get("mm_patch_merge_type"),
    }
    told += [
        f"it was trained with --{flag} {was}, not {now}"
        for flag, was in trained_with.items()
        if was not in (None, "", now := getattr(model_args, flag))
    ]
    if told:
        log.warning("--model_name_or_path %s is a trained model: %s", path, "; ".join(told))


def _refuse_gaps(path: str, missing: Iterable[str]) -> None:
    """Refuses a base whose language model would start from random weights.

    Raises:
        CheckpointError: Weights are missing; the message names some of them.
    """
    # training itself adds these
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
        llm_int8_skip_modules=list(NOT_QUANTIZED),
        llm_int8_threshold=6.0,
        llm_int8_has_fp16_weight=False,
        bnb_4bit_compute_dtype=training_args.compute_dtype,
        bnb_4bit_use_double_quant=training_args.double_quant,
        bnb_4bit_quant_type=training_args.quant_type,
    )


def _mend_generation_config(model: Any) -> None:
    """Makes the generation configuration valid.

    Vicuna's sets a temperature without sampling, which transformers refuses to save.
    """
    generation: Any = getattr(model, "generation_config", None)
    try:
        if generation is not None:
            generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def build_tokenizer(
    model_args: ModelArguments, training_args: TrainingArguments, model: Any
) -> tuple[Any, Conversation]:
    """Loads the tokenizer, sets its pad token, and chooses the conversation template.

    Args:
        model_args: `model_name_or_path` and `version`. The versions `v0` and `v0.5` keep
            `llava.conversation.default_conversation`, which is `vicuna_v1`, as in LLaVA.
        training_args: `model_max_length`.
        model: Its embeddings grow by one row if the pad token is new.

    Raises:
        TemplateError: There is no template of that name; the choices are listed. With `auto`, the
            tokenizer has no chat template, or training cannot use it.
        CheckpointError: There is no tokenizer.
    """
    version = str(model_args.version)
    conv: Conversation | None = None
    if version in VICUNA_VERSIONS:
        conv = conversation_lib.default_conversation
    elif version != AUTO:
        conv = get_conversation(version)
    tokenizer = load_tokenizer(
        str(model_args.model_name_or_path),
        model_max_length=training_args.model_max_length,
        padding_side="right",
        cache_dir=training_args.cache_dir,
    )
    conv = conv or chat_conversation(tokenizer)
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
    """Warns if the tokenizer's chat format differs from the template; never raises.

    Args:
        conv: The template that training uses.
        tokenizer: The language model's tokenizer.
        name: The template's name, for the message.
    """
    if conv.sep_style is SeparatorStyle.PLAIN:
        return
    stop = conv.answer_end or ""
    told = []
    num_tokens = len(tokenizer(stop, add_special_tokens=False).input_ids)
    if num_tokens != 1:
        told.append(
            f"its answers end with {stop!r}, which is {num_tokens} tokens for this tokenizer "
            f"(its own end is {tokenizer.eos_token!r})"
        )
    theirs = None if isinstance(conv, ChatConversation) else _second_round(tokenizer)
    ours = _second_round_of(conv)
    # white space is ignored: LLaVA's templates differ from Mistral's in it, and models learn that
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
    """Returns what a template writes for the second question and its answer."""
    messages = [(conv.roles[i % 2], text) for i, (_, text) in enumerate(_TWO_ROUNDS)]
    return "".join(text for text, message, _ in conv.segments(messages) if (message or 0) >= 2)


def _second_round(tokenizer: Any) -> str | None:
    """Returns the same for the tokenizer's chat template, or None if it cannot be compared."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": role, "content": text} for role, text in _TWO_ROUNDS]
    try:
        first, both = (
            tokenizer.apply_chat_template(messages[:end], tokenize=False) for end in (2, 4)
        )
    except Exception as error:  # a model's Jinja template may raise anything
        log.debug("the tokenizer's chat template cannot be compared: %s", error)
        return None
    return both.removeprefix(first) if both.startswith(first) else None


def _choose_pad_token(tokenizer: Any, model: Any) -> None:
    """Sets a pad token that no text contains; EOS would mask the end of answers."""
    vocabulary = tokenizer.get_vocab()
    known = next((token for token in PAD_TOKENS if token in vocabulary), None)
    if known is not None:
        tokenizer.pad_token = known
    elif tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: dict[str, str], tokenizer: Any, model: Any
) -> None:
    """Adds special tokens; their embeddings are the mean of the old ones.

    Args:
        special_tokens_dict: Such as `{"pad_token": "[PAD]"}`.
        tokenizer: Tokenizer that gets the tokens.
        model: Both of its embedding tables grow if they are too small.
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
    """Adds tower and projector to the model, and LLaVA's dynamic attributes to the arguments.

    Returns:
        The tower's image processor; None for a text-only model.

    Raises:
        CheckpointError: The tower or the projector file cannot be read or does not fit.
        ConfigError: Images cannot be cut into tiles, or videos be shown, as the flags say.
    """
    training_args.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter  # type: ignore[attr-defined]
    training_args.use_im_start_end = model_args.mm_use_im_start_end  # type: ignore[attr-defined]
    for name in ("mm_tunable_parts", "mm_vision_tower_last_layers"):
        setattr(training_args, name, getattr(model_args, name))
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end  # type: ignore[attr-defined]
    if model_args.vision_tower is None:
        data_args.image_processor = None  # type: ignore[attr-defined]
        return None
    is_tuned = TOWER in trained_parts(model_args, training_args)
    # FSDP shards a tower that is trained; a frozen one is hidden from it
    hide = None if model_args.tunes_tower else training_args.fsdp
    model.get_model().initialize_vision_modules(model_args, fsdp=hide)
    if training_args.fsdp:
        # FSDP wraps the layers of these classes; of a hidden tower, or of the vision tower that a
        # composite model has in transformers, there are none, and a name without layers is refused
        present = {type(module).__name__ for module in model.modules()}
        model._no_split_modules = present.intersection(model._no_split_modules)
    tower = model.get_vision_tower()
    if not any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        dtype = training_args.compute_dtype
        if is_tuned and not training_args.deepspeed:
            dtype = torch.float32  # as the language model, see `load_dtype`
            model.get_model().mm_projector.to(dtype=dtype)
        tower.to(dtype=dtype, device=training_args.device)
    if training_args.bits < 16:
        model.get_model().mm_projector.to(
            dtype=training_args.compute_dtype, device=training_args.device
        )
    if model_args.mm_use_im_patch_token or model_args.mm_use_im_start_end:
        model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    data_args.image_processor = tower.image_processor  # type: ignore[attr-defined]
    data_args.is_multimodal = True
    for name in ("mm_patch_merge_type", "mm_spatial_pool_stride"):
        setattr(data_args, name, getattr(model_args, name))
    Tiling.of_training(data_args).check(training_args.model_max_length)
    return tower.image_processor


def compile_layers(model: nn.Module) -> None:
    """Compiles each layer of the language model with `torch.compile`, for any length.

    The model is not compiled as a whole, because splicing images into the text makes shapes depend
    on the data.
    """
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and "vision_tower" not in name:
            module.compile(dynamic=True)


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Returns the last name parts of the language model's linear layers, without its head."""
    return sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)} - {"lm_head"})


def add_lora(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """Adds LoRA adapters, if `--lora_enable` is set.

    The linear layers of the language model get them, or of the parts that `--mm_tunable_parts`
    names; of the tower those whose layers would be trained without LoRA. With `--lora_experts`, so
    do weights that hold all experts of a layer.

    Raises:
        ConfigError: peft refuses the settings, the tower has fewer layers than are named, or there
            are no experts to adapt.
    """
    if not training_args.lora_enable:
        return model
    from peft import LoraConfig, get_peft_model

    named = split_parts(model_args.mm_tunable_parts)
    patterns = []
    if LANGUAGE_PART in named or not named:
        # full paths, because layers of the tower have the same short names
        layers = "|".join(find_all_linear_names(model))
        patterns.append(rf"(?!.*({'|'.join(MULTIMODAL_PARTS)})).*\.({layers})")
    if TOWER_PART in named:
        patterns.append(_tower_targets(model, model_args.mm_vision_tower_last_layers))
    targets = "|".join(patterns)
    experts = expert_names(model)
    last_names = ", ".join(sorted({name.rpartition(".")[2] for name in experts}))
    if training_args.lora_experts and not (experts and (LANGUAGE_PART in named or not named)):
        raise ConfigError(
            "--lora_experts True: this run adapts no language model with experts in one tensor "
            f"(found: {last_names or 'none'}); leave the flag out"
        )
    config = LoraConfig(
        r=training_args.lora_r,
        lora_alpha=training_args.lora_alpha,
        target_modules=targets,
        lora_dropout=training_args.lora_dropout,
        bias=training_args.lora_bias,
        task_type="CAUSAL_LM",
        target_parameters=experts if training_args.lora_experts else None,
    )
    if experts and not training_args.lora_experts:
        log.info(
            "LoRA: the experts (%s) are tensors of three dimensions, which get no adapters and "
            "stay frozen without --lora_experts True; adapted are %s",
            last_names,
            ", ".join(find_all_linear_names(model)),
        )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be set up: {error}") from error


def expert_names(model: nn.Module) -> list[str]:
    """Returns the names of weights that hold all experts of a layer at once."""
    return sorted(
        {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if not isinstance(module, nn.Conv1d) and not any(p in path for p in MULTIMODAL_PARTS)
            for name, weight in module.named_parameters(recurse=False)
            if len(getattr(weight, "ds_shape", weight.shape)) == 3
        }
    )


def _tower_targets(model: Any, last_layers: int | None) -> str:
    """Returns a pattern of the paths of the linear layers in the tower's trained layers."""
    tower = model.get_vision_tower()
    path, blocks, trained = tower_layers(tower, last_layers)
    names = {
        name
        for index in trained
        for name, module in blocks[index].named_modules()
        if isinstance(module, nn.Linear)
    }
    indices, inner = "|".join(map(str, trained)), "|".join(map(re.escape, sorted(names)))
    return rf".*\.vision_tower\.{re.escape(path)}\.({indices})\.({inner})"


def tower_layers(
    tower: nn.Module, last_layers: int | None = None
) -> tuple[str, Sequence[nn.Module], range]:
    """Finds the layers of a vision tower that a run trains.

    Args:
        tower: A loaded tower. Layers after the one that its features come from are not run, so they
            have no gradient and are never trained.
        last_layers: Train only so many, counted back from the selected layer; None: all.

    Returns:
        Path of the list of layers in the tower, the list, and the indices of those to train.

    Raises:
        ConfigError: The tower runs fewer layers than `last_layers`, or there are two towers.
    """
    if hasattr(tower, "towers"):
        raise ConfigError(
            "--mm_tunable_parts names mm_vision_tower, but two towers stand side by side: name one "
            "tower (--vision_tower), or leave the towers frozen"
        )
    lists = [item for item in tower.named_modules() if isinstance(item[1], nn.ModuleList)]
    path, layers = max(lists, key=lambda item: len(item[1]), default=("", nn.ModuleList()))
    num_run = tower.state_index
    if last_layers is not None and last_layers > num_run:
        raise ConfigError(
            f"--mm_vision_tower_last_layers is {last_layers}, but the features come from "
            f"{num_run} layers of the vision tower: it has {len(layers)}, and "
            f"--mm_vision_select_layer is {tower.select_layer}"
        )
    return path, layers, range(0 if last_layers is None else num_run - last_layers, num_run)


def _tuned_in_tower(tower: nn.Module, last_layers: int | None) -> set[str]:
    """Returns the names of the tower's parameters to train, from the tower on."""
    path, _, trained = tower_layers(tower, last_layers)
    found, is_before = set(), last_layers is None
    for name, _ in tower.named_parameters():
        # embeddings and the norm before the layers come first; what comes later is not run
        is_layer = bool(path) and name.startswith(f"{path}.")
        is_before = is_before and not is_layer
        index = int(name[len(path) + 1 :].partition(".")[0]) if is_layer else -1
        if is_before or index in trained:
            found.add(name)
    return found


TOWER, PROJECTOR, NEWLINE, LANGUAGE_MODEL, HEAD, ADAPTERS = (
    "vision tower",
    "projector",
    "image newline",
    "language model",
    "lm_head",
    "LoRA adapters",
)
# a parameter's name contains the mark of its part
_MARKS = {
    "lora_": ADAPTERS,
    "vision_tower.": TOWER,
    "mm_projector.": PROJECTOR,
    "image_newline": NEWLINE,
    "lm_head.": HEAD,
}


_PARTS_NAMED = {
    TOWER_PART: (TOWER,),
    PROJECTOR_PART: (PROJECTOR, NEWLINE),
    LANGUAGE_PART: (LANGUAGE_MODEL, HEAD, NEWLINE),
}


def part_of(name: str) -> str:
    """Returns the part of the model that a parameter belongs to, by its name."""
    return next((part for mark, part in _MARKS.items() if mark in name), LANGUAGE_MODEL)


class PartCount(NamedTuple):
    """Parameters of one part of a model."""

    part: str
    num_trainable: int
    num_total: int
    dtype: str = ""


def trained_parts(model_args: ModelArguments, training_args: TrainingArguments) -> set[str]:
    """Returns the parts of the model that the flags of a stage train.

    LoRA adapters are trained in place of the language model, its head and the tower.
    """
    if model_args.tune_mm_mlp_adapter:
        return {PROJECTOR, NEWLINE}
    named = split_parts(model_args.mm_tunable_parts)
    parts = {part for name in named for part in _PARTS_NAMED[name]}
    if not named:
        parts = set() if training_args.freeze_mm_mlp_adapter else {PROJECTOR}
        if not model_args.freeze_backbone or training_args.lora_enable:
            parts |= {LANGUAGE_MODEL, NEWLINE}
        parts.add(HEAD)
    if training_args.lora_enable:
        return parts - {LANGUAGE_MODEL, HEAD, TOWER} | {ADAPTERS}
    return parts


def apply_freeze(
    model: nn.Module, trained: Collection[str], last_layers: int | None = None
) -> list[PartCount]:
    """Sets `requires_grad` on every parameter and logs what is trained.

    Args:
        model: A model with its vision modules, perhaps with LoRA adapters.
        trained: Parts to train. Bias terms of the language model's adapted layers keep what peft
            has set.
        last_layers: Of the tower, train only so many layers; see `tower_layers`.

    Raises:
        ConfigError: Nothing would be trained, or the tower has fewer layers.
    """
    kept_by_peft = (LANGUAGE_MODEL, HEAD) if ADAPTERS in trained else ()
    tuned = _tuned_in_tower(model.get_vision_tower(), last_layers) if TOWER in trained else set()
    parameters: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameters[part].append(parameter)
        is_trained = part in trained
        if part == TOWER:
            is_trained = name.partition("vision_tower.")[2] in tuned
        # quantized weights are integers, which have no gradient
        if part not in kept_by_peft and parameter.is_floating_point():
            parameter.requires_grad_(is_trained)
    counts = [_count(part, own) for part, own in parameters.items()]
    table = _table(counts)
    if not any(count.num_trainable for count in counts):
        raise ConfigError(f"nothing is left to be trained by these flags:\n{table}")
    log.info("parameters\n%s", table)
    return counts


def _count(part: str, parameters: Collection[nn.Parameter]) -> PartCount:
    """Counts parameters; partitioned ones (ZeRO-3) count with their full size."""
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in parameters]
    dtypes = {str(each.dtype).removeprefix("torch.") for each in parameters}
    num_trainable = sum(size for size, is_trained in sizes if is_trained)
    return PartCount(part, num_trainable, sum(size for size, _ in sizes), ", ".join(sorted(dtypes)))


def _table(counts: Collection[PartCount]) -> str:
    _, trainable, sizes, _ = zip(*counts, strict=True)
    rows = [
        f"{part:<15}{num_trainable:>15,}{num_total:>15,}  {dtype}".rstrip()
        for part, num_trainable, num_total, dtype in (
            *counts,
            PartCount("total", sum(trainable), sum(sizes)),
        )
    ]
    return "\n".join([f"{'part':<15}{'trainable':>15}{'all':>15}  dtype", *rows])


def _layout(data_args: DataArguments) -> dict[str, Any]:
    """Returns the keys of `config.json` for tiles, as LLaVA writes them, and for videos."""
    tiling = Tiling.of_training(data_args)
    keys: dict[str, Any] = {}
    if tiling.pinpoints:
        keys["image_grid_pinpoints"] = [list(pair) for pair in tiling.pinpoints]
    if tiling.video_frames:
        keys |= {"video_frames": tiling.video_frames, **VIDEO_LAYOUT}
        keys["mm_spatial_pool_stride"] = tiling.pool_stride
    return keys


def write_config(
    model: Any,
    tokenizer: Any,
    conv: Conversation,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Records the settings of training in `config.json`, so that readers need no flags.

    `initialize_vision_modules` has already written the keys of tower and projector.
    """
    keys: dict[str, Any] = {
        "conversation": conversation_to_dict(conv),
        "tokenizer_padding_side": tokenizer.padding_side,
        "tokenizer_model_max_length": tokenizer.model_max_length,
    }
    if model_args.vision_tower is not None:
        keys |= {
            "image_aspect_ratio": data_args.image_aspect_ratio,
            **_layout(data_args),
            "tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
            "freeze_mm_mlp_adapter": training_args.freeze_mm_mlp_adapter,
            "mm_use_im_start_end": model_args.mm_use_im_start_end,
            "mm_use_im_patch_token": model_args.mm_use_im_patch_token,
            "mm_projector_lr": training_args.mm_projector_lr,
        }
        was_tuned = MultimodalConfig.from_config(model.config).tunes_tower
        if model_args.mm_tunable_parts is not None or was_tuned:
            # the first two for readers of LLaVA-NeXT, some of which know the one, some the other
            keys |= {
                "unfreeze_mm_vision_tower": was_tuned or model_args.tunes_tower,
                "mm_tunable_parts": model_args.mm_tunable_parts,
                "mm_vision_tower_lr": training_args.mm_vision_tower_lr,
                "mm_vision_tower_last_layers": model_args.mm_vision_tower_last_layers,
            }
    for key, value in keys.items():
        setattr(model.config, key, value)
