"""Keeps LLaVA's names of the vision towers, which take any kind now."""

from llava.model.multimodal_encoder.vision_tower import VisionTower as CLIPVisionTower
from llava.model.multimodal_encoder.vision_tower import VisionTowerS2 as CLIPVisionTowerS2

__all__ = ["CLIPVisionTower", "CLIPVisionTowerS2"]
