"""Draws a scene: sprites scaled, mirrored and pasted onto a plain background.

Input: a scene and the sprites. Output: an RGB picture. The same recipe gives the same picture with
the same version of Pillow; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from lrm_ext.corpus.emoji.scenes import Placed, Scene

DEFAULT_SIZE = 128


def render_scene(
    scene: Scene, sprites: Mapping[str, Image.Image], size: int = DEFAULT_SIZE
) -> Image.Image:
    """Draw a scene.

    Args:
        scene: The recipe.
        sprites: RGBA pictures by concept id, as from `load_sprites()`.
        size: Side of the square canvas in pixels.

    Returns:
        The picture, RGB, `size` x `size`.
    """
    canvas = Image.new("RGB", (size, size), scene.shade)
    for placed in scene.objects:
        sprite = _scaled(sprites[placed.concept], placed, size)
        left = round(placed.x * size - sprite.width / 2)
        top = round(placed.y * size - sprite.height / 2)
        canvas.paste(sprite, (left, top), sprite)
    return canvas


def _scaled(sprite: Image.Image, placed: Placed, size: int) -> Image.Image:
    factor = placed.size * size / max(sprite.size)
    shape = (max(1, round(sprite.width * factor)), max(1, round(sprite.height * factor)))
    # premultiplied, so that the colour of transparent pixels does not bleed into the edges
    scaled = sprite.convert("RGBa").resize(shape, Image.Resampling.BICUBIC).convert("RGBA")
    return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.mirrored else scaled
