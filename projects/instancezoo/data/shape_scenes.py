"""Draws one image of the built-in sets: textured background, shapes, occluders.

Every random number comes from `Generator.random`, and all arithmetic after the outlines is in whole
numbers, so an image is the same to the bit on every machine. H W image size, h w a part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from instancezoo.data.shape_outlines import (
    FULL_COVERAGE,
    SHAPES,
    Outline,
    measure_coverage,
    place_outline,
)

Pixels = NDArray[np.int64]  # (h, w, 3) RGB
Random = np.random.Generator

MIN_VISIBLE_PIXELS = 16
PLACEMENT_TRIES = 12
_INNER_SHARE = 0.65  # of a twin's radius: the part inside its rim
_ROW_STEP = 0.87  # of the step between columns, in a hexagonal grid


@dataclass(frozen=True)
class SceneStyle:
    """Appearance of the images of a set."""

    size: int  # pixels, height and width
    classes: tuple[str, ...]
    num_objects: tuple[int, int]  # fewest and most, without crowds
    radius: tuple[float, float]  # pixels, smallest and largest
    min_visible: float  # smallest visible share of an object; no other may be placed to hide more
    crowd_probability: float  # of one group of small neighbours of one class
    bar_probability: float  # of an unlabelled bar across one object
    min_contrast: int  # sum over RGB between the colours of an object and of its background
    texture: int  # amplitude of the textures, in grey levels
    # Radii between neighbours of a group of identical objects; 0: objects differ, at random places.
    spacing: float = 0.0


@dataclass
class Scene:
    """An image and its visible objects."""

    image: Pixels  # (H, W, 3) in [0, 255]
    names: list[str] = field(default_factory=list)
    masks: list[NDArray[np.bool_]] = field(default_factory=list)  # (H, W), visible pixels, disjoint
    full_areas: list[int] = field(default_factory=list)  # pixels, hidden ones included


def draw_scene(style: SceneStyle, rng: Random) -> Scene:
    """Draw one image, with at least `style.min_visible` of each object visible.

    Args:
        style: appearance of the set.
        rng: generator used for this image only.
    """
    scene = Scene(_paint_background(style, rng))
    if style.spacing:
        _add_twins(scene, style, rng)
        return scene
    radii = [_sample_between(*style.radius, rng) for _ in range(_sample_count(style, rng))]
    # Large ones first, so that small ones lie on top and few placements are rejected.
    for radius in sorted(radii, reverse=True):
        _add_somewhere(scene, style, radius, rng)
    if rng.random() < style.crowd_probability:
        _add_crowd(scene, style, rng)
    if rng.random() < style.bar_probability:
        _add_bar(scene, style, rng)
    return scene


def _sample_between(low: float, high: float, rng: Random) -> float:
    return low + (high - low) * rng.random()


def _sample_count(style: SceneStyle, rng: Random) -> int:
    low, high = style.num_objects
    return low + int((high - low + 1) * rng.random())


def _sample_class(style: SceneStyle, rng: Random) -> str:
    return style.classes[int(len(style.classes) * rng.random())]


def _add_somewhere(scene: Scene, style: SceneStyle, radius: float, rng: Random) -> None:
    name = _sample_class(style, rng)
    outline = SHAPES[name](rng)
    for _ in range(PLACEMENT_TRIES):
        # Where objects may hide each other, up to half a radius may lie beyond the border.
        margin = radius if style.min_visible > 0.5 else radius / 2
        x = _sample_between(margin, style.size - margin, rng)
        y = _sample_between(margin, style.size - margin, rng)
        placed = place_outline(outline, x, y, radius, _sample_between(0, 2 * math.pi, rng))
        if _add_object(scene, style, placed, name, rng):
            return


def _add_crowd(scene: Scene, style: SceneStyle, rng: Random) -> None:
    name = _sample_class(style, rng)
    radius = _sample_between(6.0, 10.0, rng)
    spacing = 1.9 * radius
    x0 = _sample_between(2 * spacing, style.size - 2 * spacing, rng)
    y0 = _sample_between(2 * spacing, style.size - 2 * spacing, rng)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            x = x0 + (column + row / 2 + 0.3 * rng.random()) * spacing
            y = y0 + (row * 0.87 + 0.3 * rng.random()) * spacing
            angle = _sample_between(0, 2 * math.pi, rng)
            placed = place_outline(SHAPES[name](rng), x, y, radius, angle)
            _add_object(scene, style, placed, name, rng)


def _add_twins(scene: Scene, style: SceneStyle, rng: Random) -> None:
    """Draw copies of one object, whose only difference is the place, side by side."""
    name = _sample_class(style, rng)
    outline, radius = SHAPES[name](rng), _sample_between(*style.radius, rng)
    angle = _sample_between(0, 2 * math.pi, rng)
    rim = _sample_colour(_average(scene.image), style, rng)
    inside = _sample_colour(rim, style, rng)
    for x, y in _choose_places(style, radius, _sample_count(style, rng), rng):
        placed = place_outline(outline, x, y, radius, angle)
        if _add_object(scene, style, placed, name, rng, rim):
            # A rim shows where one object ends and the next begins.
            inner = place_outline(outline, x, y, _INNER_SHARE * radius, angle)
            coverage = measure_coverage(inner, style.size, style.size)
            _blend(scene.image, coverage, inside)


def _choose_places(
    style: SceneStyle, radius: float, count: int, rng: Random
) -> list[tuple[float, float]]:
    """Places of a hexagonal grid, those nearest to a random point, in the order of their rows."""
    step = style.spacing * radius
    phase_x, phase_y = step * rng.random(), step * rng.random()
    x0, y0 = (_sample_between(radius, style.size - radius, rng) for _ in range(2))
    places = []
    for row in range(int(style.size / (_ROW_STEP * step)) + 1):
        for column in range(-1, int(style.size / step) + 1):
            x = phase_x + (column + row % 2 / 2) * step
            y = phase_y + row * _ROW_STEP * step
            if all(radius <= place <= style.size - radius for place in (x, y)):
                places.append((x, y))
    nearest = sorted(places, key=lambda place: (place[0] - x0) ** 2 + (place[1] - y0) ** 2)
    return sorted(nearest[:count], key=lambda place: (place[1], place[0]))


def _add_bar(scene: Scene, style: SceneStyle, rng: Random) -> None:
    """Draw a bar, which is not an object, across an object to split it into two parts."""
    large = [mask for mask in scene.masks if mask.sum() >= 400]
    if not large:
        return
    ys, xs = np.nonzero(large[int(len(large) * rng.random())])
    x, y = int(xs.sum()) / len(xs), int(ys.sum()) / len(ys)
    length = 1.2 * max(int(np.ptp(xs)), int(np.ptp(ys)))
    thickness = _sample_between(4.0, 7.0, rng) / 2 / length
    bar = np.array([[-1, -thickness], [1, -thickness], [1, thickness], [-1, thickness]])
    placed = place_outline([bar], x, y, length, _sample_between(0, math.pi, rng))
    _add_object(scene, style, placed, None, rng)


def _add_object(
    scene: Scene,
    style: SceneStyle,
    outline: Outline,
    name: str | None,
    rng: Random,
    colour: Pixels | None = None,
) -> bool:
    """Paint an outline over the scene unless it would hide too much; no name: no object.

    Without a colour (3,) a textured surface is sampled.
    """
    corners = np.concatenate(outline)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, style.size)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, style.size)
    width, height = (high - low).tolist()
    if min(width, height) <= 0:
        return False
    coverage = measure_coverage([contour - low for contour in outline], height, width)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    mask = np.zeros((style.size, style.size), dtype=bool)
    mask[window] = 2 * coverage >= FULL_COVERAGE
    if mask.sum() < MIN_VISIBLE_PIXELS or _hides_too_much(scene, mask, style.min_visible):
        return False
    if colour is None:
        _paint(scene.image[window], coverage, style, rng)
    else:
        _blend(scene.image[window], coverage, colour)
    scene.masks = [other & ~mask for other in scene.masks]
    if name is not None:
        scene.names.append(name)
        scene.masks.append(mask)
        scene.full_areas.append(int(mask.sum()))
    return True


def _hides_too_much(scene: Scene, mask: NDArray[np.bool_], min_visible: float) -> bool:
    return any(
        (other & ~mask).sum() < max(MIN_VISIBLE_PIXELS, min_visible * full_area)
        for other, full_area in zip(scene.masks, scene.full_areas, strict=True)
    )


def _paint(behind: Pixels, coverage: Pixels, style: SceneStyle, rng: Random) -> None:
    """Blend a textured surface into `behind` (h, w, 3), in place."""
    weight = coverage[:, :, None]
    mean = (behind * weight).sum(axis=(0, 1)) // max(int(coverage.sum()), 1)
    colour = _sample_colour(mean, style, rng)
    height, width = coverage.shape
    pattern = _draw_pattern(height, width, style.texture // 2, rng)[:, :, None]
    _blend(behind, coverage, colour + pattern + _draw_grain(coverage, rng))


def _average(image: Pixels) -> Pixels:
    """Mean colour (3,)."""
    return image.sum(axis=(0, 1)) // (image.shape[0] * image.shape[1])


def _sample_colour(other: Pixels, style: SceneStyle, rng: Random) -> Pixels:
    """A colour (3,) that differs enough from another, if the tries suffice."""
    for _ in range(PLACEMENT_TRIES):
        colour = (256 * rng.random(3)).astype(np.int64)
        if np.abs(colour - other).sum() >= style.min_contrast:
            break
    return colour


def _blend(behind: Pixels, coverage: Pixels, surface: Pixels) -> None:
    """Lay a surface (h, w, 3) or a colour (3,) over `behind` (h, w, 3), in place."""
    weight = coverage[:, :, None]
    behind[:] = (
        behind * (FULL_COVERAGE - weight) + np.clip(surface, 0, 255) * weight + FULL_COVERAGE // 2
    ) // FULL_COVERAGE


def _draw_pattern(height: int, width: int, amplitude: int, rng: Random) -> Pixels:
    """Plain, stripes, checks or a slope: (h, w) in [-amplitude, amplitude]."""
    kind, strength = int(4 * rng.random()), int(amplitude * (1 + 2 * rng.random()) / 3)
    slope_x, slope_y = (int(9 * rng.random()) - 4 for _ in range(2))
    period = 6 + int(12 * rng.random())
    y, x = np.mgrid[:height, :width]
    if kind == 0:
        return np.zeros((height, width), dtype=np.int64)
    if kind == 1:
        return ((slope_x * x + slope_y * y) // period % 2 * 2 - 1) * strength
    if kind == 2:
        return ((x // period + y // period) % 2 * 2 - 1) * strength
    slope = slope_x * (2 * x - width) + slope_y * (2 * y - height)
    return slope * strength // (4 * (width + height))


def _draw_grain(like: Pixels, rng: Random, amplitude: int = 6) -> Pixels:
    return (rng.random((*like.shape[:2], 1)) * (2 * amplitude + 1)).astype(np.int64) - amplitude


def _paint_background(style: SceneStyle, rng: Random) -> Pixels:
    """(H, W, 3) smooth noise at three scales over one colour, a pattern, and grain."""
    size = style.size
    image = np.zeros((size, size, 3), dtype=np.int64) + (40 + 176 * rng.random(3)).astype(np.int64)
    for cell, share in ((size // 2, 4), (size // 6, 3), (size // 16, 2)):
        image += _draw_smooth_noise(size, cell, rng) * style.texture * share // (9 * 256)
    image += _draw_pattern(size, size, style.texture // 2, rng)[:, :, None]
    return np.clip(image + _draw_grain(image, rng), 0, 255)


def _draw_smooth_noise(size: int, cell: int, rng: Random) -> Pixels:
    """(H, W, 3) in [-256, 256]: random values on a grid of `cell` pixels, interpolated."""
    count = size // cell + 2
    grid = (513 * rng.random((count, count, 3))).astype(np.int64) - 256
    index, step = np.divmod(np.arange(size), cell)
    step_y, step_x = step[:, None, None], step[None, :, None]
    rows = grid[index] * (cell - step_y) + grid[index + 1] * step_y  # (H, count, 3)
    return (rows[:, index] * (cell - step_x) + rows[:, index + 1] * step_x) // cell**2
