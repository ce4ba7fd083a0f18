"""A CLIP-shaped vision tower, trained contrastively on images and English phrases.

Input: scenes drawn from the training combinations only. Output: a `CLIPVisionModel` folder with
its image processor, the format of `--vision_tower`. Images and phrases are compared patch by patch
(late interaction, as in FILIP, arXiv 2111.07783) with SigLIP's pairwise loss (arXiv 2303.15343):
LLaVA reads the patch features, and on a CPU this learns several times faster than comparing one
vector per image (measured: `docs/mini.md`). The text side is discarded.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from llava.model.checkpoint import save_tower
from llava.progress import Progress
from lrm_ext.emoji.scenes import (
    POSITIONS,
    Scene,
    backgrounds,
    get_vocabulary,
    load_concepts,
    load_sprites,
    render_scene,
    sample_scene,
)
from tools.mini.recipe import TowerRecipe

log = logging.getLogger(__name__)

CANVAS_PX = 128


def build_phrases() -> tuple[list[str], dict[str, int]]:
    """Returns every English phrase that can be true of a scene.

    Returns:
        The phrases, and the index of each fact: `dog`, `dog@top_left`, `on:blue`.
    """
    words = get_vocabulary("en")
    facts: dict[str, str] = {}
    for concept in load_concepts():
        thing = words.articles[concept.id] + concept.names["en"]
        facts[concept.id] = thing
        for position in POSITIONS:
            facts[f"{concept.id}@{position}"] = f"{thing} at the {words.positions[position]}"
    for color in backgrounds():
        facts[f"on:{color}"] = words.color_backgrounds[color]
    return list(facts.values()), {fact: index for index, fact in enumerate(facts)}


def facts_of(scene: Scene) -> list[str]:
    """Returns the facts that are true of a scene; positions only if there are several objects."""
    facts = [f"on:{scene.background}"]
    for placed in scene.objects:
        facts.append(placed.concept)
        if len(scene.objects) > 1:
            facts.append(f"{placed.concept}@{placed.position}")
    return facts


def draw_pictures(recipe: TowerRecipe, index: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Renders training scenes.

    Returns:
        Images, uint8 `[N, 3, S, S]`, and truth, bool `[N, num_phrases]`.
    """
    rng = random.Random(recipe.seed)
    sprites = load_sprites()
    size = recipe.image_size_px
    pictures = np.empty((recipe.num_scenes, size, size, 3), np.uint8)
    truth = torch.zeros(recipe.num_scenes, len(index), dtype=torch.bool)
    for row in range(recipe.num_scenes):
        scene = sample_scene(rng, "train")
        picture = render_scene(scene, sprites, CANVAS_PX)
        pictures[row] = np.asarray(picture.resize((size, size), resample=3))
        truth[row, [index[fact] for fact in facts_of(scene)]] = True
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), truth


class PhraseEncoder(nn.Module):
    """Mean of word embeddings, then a small MLP: `num_phrases` phrases to `[num_phrases, D]`."""

    def __init__(self, phrases: list[str], hidden_size: int, projection_dim: int) -> None:
        super().__init__()
        words = sorted({word for phrase in phrases for word in phrase.split()})
        number = {word: index for index, word in enumerate(words)}
        bag = torch.zeros(len(phrases), len(words))
        for row, phrase in enumerate(phrases):
            for word in phrase.split():
                bag[row, number[word]] += 1
        self.register_buffer("bag", bag, persistent=False)
        self.embed = nn.Linear(len(words), hidden_size, bias=False)
        nn.init.normal_(self.embed.weight)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, projection_dim),
        )

    def forward(self) -> Tensor:
        """Returns unit vectors of all phrases."""
        return F.normalize(self.mlp(self.embed(self.bag)), dim=-1)


class ContrastiveModel(nn.Module):
    """Tower, phrase encoder and the pairwise loss between patches and phrases."""

    def __init__(self, recipe: TowerRecipe, phrases: list[str]) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(tower_config(recipe))
        self.phrases = PhraseEncoder(phrases, recipe.text_hidden_size, recipe.projection_dim)
        # The layer that LLaVA reads (-2), whose output must be the aligned one.
        self.project = nn.Sequential(
            nn.LayerNorm(recipe.hidden_size),
            nn.Linear(recipe.hidden_size, recipe.projection_dim, bias=False),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-8.0))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns logits `[B, num_phrases]` of normalised images `[B, 3, S, S]`."""
        hidden = self.tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        patches = F.normalize(self.project(hidden), dim=-1)
        similarity = self.log_scale.exp() * patches @ self.phrases().T
        return similarity.logsumexp(dim=1) + self.bias


def tower_config(recipe: TowerRecipe) -> CLIPVisionConfig:
    """Returns the tower's shape; it has an extra layer, as LLaVA reads the last but one."""
    return CLIPVisionConfig(
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        image_size=recipe.image_size_px,
        patch_size=recipe.patch_size_px,
        projection_dim=recipe.projection_dim,
        hidden_act="gelu",
    )


def image_processor(recipe: TowerRecipe) -> CLIPImageProcessor:
    """Returns CLIP's preprocessing at the tower's size."""
    size = recipe.image_size_px
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


def normalise(pictures: Tensor, processor: CLIPImageProcessor) -> Tensor:
    """Converts uint8 `[B, 3, S, S]` to the tower's input."""
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    return (pictures.float() / 255 - mean) / std


def _batches(num: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(num, generator=generator)[: num // batch_size * batch_size].view(
            -1, batch_size
        )


def train_tower(recipe: TowerRecipe, out_dir: Path) -> None:
    """Trains the tower and writes it to `out_dir` as safetensors in half precision."""
    torch.manual_seed(recipe.seed)
    phrases, index = build_phrases()
    processor = image_processor(recipe)
    log.info("rendering %d training scenes", recipe.num_scenes)
    pictures, truth = draw_pictures(recipe, index)
    model = ContrastiveModel(recipe, phrases)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.num_steps, pct_start=0.05, cycle_momentum=False
    )
    batches = _batches(len(pictures), recipe.batch_size, torch.Generator().manual_seed(recipe.seed))
    with Progress("vision tower", recipe.num_steps) as progress:
        for _ in range(recipe.num_steps):
            rows = next(batches)
            logits = model(normalise(pictures[rows], processor))
            loss = F.binary_cross_entropy_with_logits(
                logits, truth[rows].float(), reduction="sum"
            ) / len(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            right = ((logits > 0) & truth[rows]).sum() / truth[rows].sum()
            progress.advance(loss=loss.item(), recall=right.item())
    save_tower(model.tower.half(), out_dir)
    processor.save_pretrained(out_dir)
