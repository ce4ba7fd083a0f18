"""Which conversation template the page uses for a model, and where an answer ends.

In: a worker's address and a model's name. Out: a fresh `Conversation`. A checkpoint that carries
its own template wins; else LLaVA's rule on the name holds.
"""

from __future__ import annotations

import logging
from typing import Any

import requests

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conversation_from_dict,
    get_conversation,
)
from llava.serve.client import get_worker_status
from llava.serve.protocol import model_details

log = logging.getLogger(__name__)


def template_name(model_name: str) -> str:
    """Return the template that LLaVA's page chooses for a model's name.

    Where LLaVA names a template that does not exist (`mistral_orca`, `mpt_text`) this names the one
    with the same format.
    """
    name = model_name.lower()
    if "llava" not in name:
        return _first_match(name, (("mpt", "mpt"), ("llama-2", "llama_2")), default="vicuna_v1")
    if "llama-2" in name:
        return "llava_llama_2"
    if "mistral" in name or "mixtral" in name:
        return _first_match(
            name, (("orca", "chatml_direct"), ("hermes", "chatml_direct")), "mistral_instruct"
        )
    has_tag = "mmtag" in name
    is_plain = "plain" in name
    return _first_match(
        name,
        (
            ("llava-v1.6-34b", "chatml_direct"),
            ("v1", "v1_mmtag" if has_tag or (is_plain and "finetune" not in name) else "llava_v1"),
            ("mpt", "mpt"),
        ),
        default="v0_mmtag" if has_tag or is_plain else "llava_v0",
    )


def _first_match(name: str, rules: tuple[tuple[str, str], ...], default: str) -> str:
    return next((template for part, template in rules if part in name), default)


def template_of_worker(worker_address: str, model_name: str) -> Conversation:
    """Return a fresh conversation in the template of the worker's checkpoint, else by its name."""
    try:
        status = get_worker_status(worker_address)
    except (requests.RequestException, ValueError) as error:
        log.warning("worker %s gives no status (%s): template by name", worker_address, error)
        status = {}
    return template_from_status(status, model_name)


def template_from_status(status: dict[str, Any], model_name: str) -> Conversation:
    """Return a fresh conversation in the template that a status has for a model, else by its name.

    Raises:
        TemplateError: The template is broken.
    """
    own = model_details(status, model_name).get("conversation")
    if isinstance(own, dict):
        return conversation_from_dict(own)
    return get_conversation(own or template_name(model_name))


def stop_string(conversation: Conversation) -> str | None:
    """Return the text that ends an answer in a template."""
    if conversation.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT):
        return conversation.sep
    return conversation.sep2
