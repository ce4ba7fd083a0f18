"""The task instructions MVQA, EP-VQA and BVQA: format a sample, ask a question, read a reply."""

from lrm_ext.instructions.registry import (
    FROM_EN,
    TO_EN,
    Instruction,
    ParsedReply,
    get_instruction,
    list_instructions,
)

__all__ = [
    "FROM_EN",
    "TO_EN",
    "Instruction",
    "ParsedReply",
    "get_instruction",
    "list_instructions",
]
