"""Draw scenes with Pillow; shapes and textures are drawn at twice the size, then reduced."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.scene_world import RGB, Background, Scene, Thing

_OVERSAMPLING = 2
_GRAIN = 34
# Colours of a luminance above this get a dark pattern, others a light one; the named colour stays dominant.
_LIGHT = 165


def draw_scene(scene: Scene, size: int = 144) -> Image.Image:
    """Draw a scene as an RGB picture of size x size pixels."""
    picture = _draw_background(scene.background, size)
    for thing in scene.things:
        _draw_thing(picture, thing, size)
    return picture


def _draw_background(background: Background, size: int) -> Image.Image:
    if background.kind == "plain":
        return Image.new("RGB", (size, size), background.start)
    start = np.array(background.start, np.int16)
    if background.kind == "grainy":
        random = np.random.default_rng(background.seed)
        grain = random.integers(-_GRAIN, _GRAIN + 1, (size, size, 1), np.int16)
        return Image.fromarray(np.clip(start + grain, 0, 255).astype(np.uint8))
    steps = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    line = (start + steps * (np.array(background.end, np.int16) - start)).astype(np.uint8)  # (size, 3)
    pixels = line[:, None] if background.vertical else line[None, :]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (size, size, 3))))


def _draw_thing(picture: Image.Image, thing: Thing, size: int) -> None:
    side = round(2 * thing.radius * size)
    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    _SHAPE_DRAWERS[thing.shape](ImageDraw.Draw(mask), side * _OVERSAMPLING - 1)
    corner = (round(thing.x * size - side / 2), round(thing.y * size - side / 2))
    if thing.texture == "plain":
        picture.paste(thing.rgb, (*corner, corner[0] + side, corner[1] + side), mask.reduce(_OVERSAMPLING))
        return
    fill = Image.new("RGB", mask.size, thing.rgb)
    period = max(0.055, 0.4 * thing.radius) * size * _OVERSAMPLING
    _TEXTURE_DRAWERS[thing.texture](ImageDraw.Draw(fill), mask.width, period, _pattern_colour(thing.rgb))
    picture.paste(fill.reduce(_OVERSAMPLING), corner, mask.reduce(_OVERSAMPLING))


def _pattern_colour(rgb: RGB) -> RGB:
    luminance = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
    towards, share = (0, 0.55) if luminance > _LIGHT else (255, 0.62)
    red, green, blue = (round(part + share * (towards - part)) for part in rgb)
    return red, green, blue


def _draw_stripes(draw: ImageDraw.ImageDraw, side: int, period: float, colour: RGB) -> None:
    for row in range(int(side / period) + 1):
        top = (row + 0.55) * period
        draw.rectangle((0, top, side, top + 0.42 * period), fill=colour)


def _draw_dots(draw: ImageDraw.ImageDraw, side: int, period: float, colour: RGB) -> None:
    radius = 0.29 * period
    for row in range(int(side / period) + 2):
        for column in range(int(side / period) + 2):
            x, y = (column + 0.5 * (row % 2)) * period, (row + 0.25) * period
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_checks(draw: ImageDraw.ImageDraw, side: int, period: float, colour: RGB) -> None:
    cell = 0.75 * period
    for row in range(int(side / cell) + 1):
        for column in range(row % 2, int(side / cell) + 1, 2):
            x, y = column * cell, row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)


def _draw_circle(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.ellipse((0, 0, side, side), fill=255)


def _draw_square(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.rectangle((0.05 * side, 0.05 * side, 0.95 * side, 0.95 * side), fill=255)


def _draw_triangle(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.polygon([(side / 2, 0), (side, 0.94 * side), (0, 0.94 * side)], fill=255)


def _draw_star(draw: ImageDraw.ImageDraw, side: int) -> None:
    centre = side / 2
    radii = (centre, 0.42 * centre) * 5
    points = [
        (centre + radius * sin(corner * pi / 5), centre - radius * cos(corner * pi / 5))
        for corner, radius in enumerate(radii)
    ]
    draw.polygon(points, fill=255)


def _draw_ring(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.ellipse((0, 0, side, side), fill=255)
    draw.ellipse((0.27 * side, 0.27 * side, 0.73 * side, 0.73 * side), fill=0)


def _draw_cross(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.rectangle((0.32 * side, 0, 0.68 * side, side), fill=255)
    draw.rectangle((0, 0.32 * side, side, 0.68 * side), fill=255)


def _draw_heart(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.ellipse((0, 0.05 * side, 0.53 * side, 0.58 * side), fill=255)
    draw.ellipse((0.47 * side, 0.05 * side, side, 0.58 * side), fill=255)
    flanks = [(0.045 * side, 0.46 * side), (0.5 * side, 0.3 * side), (0.955 * side, 0.46 * side)]
    draw.polygon([*flanks, (0.5 * side, side)], fill=255)


def _draw_diamond(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.polygon([(side / 2, 0), (side, side / 2), (side / 2, side), (0, side / 2)], fill=255)


_SHAPE_DRAWERS: dict[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "circle": _draw_circle,
    "square": _draw_square,
    "triangle": _draw_triangle,
    "star": _draw_star,
    "ring": _draw_ring,
    "cross": _draw_cross,
    "heart": _draw_heart,
    "diamond": _draw_diamond,
}
_TEXTURE_DRAWERS: dict[str, Callable[[ImageDraw.ImageDraw, int, float, RGB], None]] = {
    "striped": _draw_stripes,
    "dotted": _draw_dots,
    "checked": _draw_checks,
}
