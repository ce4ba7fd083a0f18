"""Real text for tests: the built-in conversations, in English and translated by people."""

from __future__ import annotations

from typing import Any

from lrm_ext.emoji.conversations import caption_turns, question_turns
from lrm_ext.emoji.scenes import load_scenes


def scene_lines(lang: str, limit: int = 60) -> list[str]:
    """All lines of the built-in conversations, in the same order in every language."""
    lines: list[str] = []
    for scene in load_scenes(limit=limit):
        for turn in (*question_turns(scene, lang), *caption_turns(scene, lang)):
            lines += turn.text.split("\n")
    return lines


def scene_table(lang: str, limit: int = 60) -> dict[str, str]:
    """English lines and their human translations."""
    return dict(zip(scene_lines("en", limit), scene_lines(lang, limit), strict=True))


def scene_records(limit: int = 60) -> list[dict[str, Any]]:
    """LLaVA records in English: a conversation and a caption of each picture."""
    records: list[dict[str, Any]] = []
    for scene in load_scenes(limit=limit):
        for kind, turns in (("q", question_turns), ("c", caption_turns)):
            conversations = [{"from": turn.role, "value": turn.text} for turn in turns(scene, "en")]
            image = f"images/{scene.id}.png"
            records.append(
                {"id": f"{scene.id}-{kind}", "image": image, "conversations": conversations}
            )
    return records
