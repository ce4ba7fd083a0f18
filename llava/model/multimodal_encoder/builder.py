"""Keeps LLaVA's path of `build_vision_tower`."""

from llava.model.multimodal_encoder.vision_tower import build_vision_tower

__all__ = ["build_vision_tower"]
