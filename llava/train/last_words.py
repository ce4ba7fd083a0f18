"""Why a process of a run ended, told to those that wait for it.

Input: the reason of the process that ends. Output: a message of the others, who by themselves only
see that a connection broke. The reason goes through the store with which the ranks found each
other; under torchrun that is the launcher's, and outlives every rank.
"""

from __future__ import annotations

import datetime
import logging
import os
import re

import torch
from torch import distributed

log = logging.getLogger(__name__)

_KEY = "lrm/last_words"
_TIMEOUT = datetime.timedelta(seconds=5)
# of gloo, NCCL and the store
_LOST = re.compile(
    r"Connection (closed|reset)|Broken pipe|recv(Value|Bytes) failed|gloo|NCCL|ncclRemoteError|"
    r"Socket(Status)?.*(closed|error)|Timed out waiting",
    re.IGNORECASE,
)


def leave(reason: str) -> None:
    """Say why this process ends; the first one that ends is heard."""
    store = _store()
    if store is None:
        return
    try:
        store.compare_set(_KEY, "", f"rank {os.environ.get('RANK', '?')}: {reason}")
    except (RuntimeError, ValueError) as error:
        log.debug("no last words: %s", error)


def explain_loss_of_contact(error: BaseException) -> str | None:
    """What to say about an exception that another process's end has caused; None for others."""
    if not isinstance(error, RuntimeError) or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    is_lost = isinstance(error, distributed.DistError) or _LOST.search(str(error)) is not None
    if not is_lost or isinstance(error, torch.OutOfMemoryError):
        return None
    heard = _heard() or (
        "it gave no reason: it was killed (perhaps for memory), or its machine is gone"
    )
    return (
        f"another process of this run ended ({heard}). Contact was lost: "
        f"{str(error).strip().splitlines()[0]}. The same command goes on from the last whole "
        "checkpoint."
    )


def _heard() -> str | None:
    store = _store()
    try:
        return store.get(_KEY).decode() if store is not None and store.check([_KEY]) else None
    except (RuntimeError, ValueError):
        return None


def _store() -> distributed.TCPStore | None:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (host and port and distributed.is_available()):
        return None
    try:
        return distributed.TCPStore(host, int(port), is_master=False, timeout=_TIMEOUT)
    except (RuntimeError, ValueError):
        return None
