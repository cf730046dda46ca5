"""Outlines of the eight shapes, and an exact polygon fill.

The fill uses integers, because the built-in sets must be the same to the bit on every machine:
float rasterisers, and those of drawing libraries, differ between CPUs and versions.

V vertices of a contour, H W size of a frame in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating[Any]]
Outline = list[Points]  # contours (V, 2) of xy, filled by the even-odd rule

SUBSAMPLES = 4  # samples per pixel and axis
_UNITS_PER_SAMPLE = 64  # vertices are whole numbers of 1/64 sample
_UNITS_PER_PIXEL = SUBSAMPLES * _UNITS_PER_SAMPLE
FULL_COVERAGE = SUBSAMPLES**2


def place_outline(outline: Outline, x: float, y: float, radius: float, angle: float) -> Outline:
    """Scale an outline to `radius` pixels, rotate it by `angle` radians, move it to (x, y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return [contour @ rotation * radius + (x, y) for contour in outline]


def measure_coverage(outline: Outline, height: int, width: int) -> NDArray[np.int64]:
    """Count the samples of each pixel that lie inside an outline.

    Args:
        outline: contours (V, 2) in pixels; they may reach beyond the frame.
        height, width: size of the frame in pixels.

    Returns:
        (H, W) counts from 0 to `FULL_COVERAGE`.
    """
    rows, columns = height * SUBSAMPLES, width * SUBSAMPLES
    flips = np.zeros((rows, columns + 1), dtype=np.int64)
    sample_y = np.arange(rows)[:, None] * _UNITS_PER_SAMPLE + _UNITS_PER_SAMPLE // 2
    for contour in outline:
        start = np.rint(contour * _UNITS_PER_PIXEL).astype(np.int64)
        end = np.roll(start, -1, axis=0)
        upward = (start[:, 1] <= end[:, 1])[:, None]
        low, high = np.where(upward, start, end), np.where(upward, end, start)
        row, edge = np.nonzero((low[:, 1] <= sample_y) & (sample_y < high[:, 1]))  # (rows, V)
        run, rise = (high - low)[edge].T
        # The first sample to the right of the edge in each row, in whole numbers.
        offset = (low[edge, 0] - _UNITS_PER_SAMPLE // 2) * rise
        offset += (sample_y[row, 0] - low[edge, 1]) * run
        column = offset // (rise * _UNITS_PER_SAMPLE) + 1
        np.add.at(flips, (row, np.clip(column, 0, columns)), 1)
    inside = np.cumsum(flips[:, :columns], axis=1) & 1
    return inside.reshape(height, SUBSAMPLES, width, SUBSAMPLES).sum(axis=(1, 3))


def _trace_polar(radii: Points, angles: Points) -> Points:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _trace_circle(radius: float = 1.0, num_points: int = 48) -> Points:
    angles = np.arange(num_points) * (2 * math.pi / num_points)
    return _trace_polar(np.full(num_points, radius), angles)


def _outline_star(rng: np.random.Generator) -> Outline:
    radii = np.tile([1.0, 0.4 + 0.1 * rng.random()], 5)
    return [_trace_polar(radii, np.arange(10) * (math.pi / 5))]


def _outline_crescent(rng: np.random.Generator) -> Outline:
    # The unit disc without a disc of radius `bite` whose centre is at (shift, 0).
    bite, shift = 0.8 + 0.1 * rng.random(), 0.55
    tip_x = (1 + shift**2 - bite**2) / (2 * shift)
    outer_tip = math.acos(tip_x)
    inner_tip = math.atan2(math.sin(outer_tip), tip_x - shift)
    outer = _trace_polar(np.ones(40), np.linspace(outer_tip, 2 * math.pi - outer_tip, 40))
    inner_angles = np.linspace(2 * math.pi - inner_tip, inner_tip, 32)
    inner = _trace_polar(np.full(32, bite), inner_angles) + (shift, 0.0)
    return [np.concatenate([outer, inner[1:-1]])]


def _outline_gear(rng: np.random.Generator) -> Outline:
    num_teeth = 7 + int(3 * rng.random())
    pitch = 2 * math.pi / num_teeth
    corners = np.array([0.0, 0.15, 0.45, 0.6]) * pitch  # foot, tip, tip, foot of a tooth
    angles = (np.arange(num_teeth)[:, None] * pitch + corners).reshape(-1)
    radii = np.tile([0.72, 1.0, 1.0, 0.72], num_teeth)
    return [_trace_polar(radii, angles), _trace_circle(0.3)]


def _outline_blob(rng: np.random.Generator) -> Outline:
    angles = np.arange(64) * (2 * math.pi / 64)
    radii = np.ones(64)
    for frequency in (2, 3, 5):
        amplitude, phase = 0.28 * rng.random(), 2 * math.pi * rng.random()
        radii = radii + amplitude * np.cos(frequency * angles + phase)
    return [_trace_polar(radii / radii.max(), angles)]


# Class name -> function that samples its free proportions: contours (V, 2) in the unit disc.
SHAPES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": lambda rng: [_trace_circle()],
    "ring": lambda rng: [_trace_circle(), _trace_circle(0.45 + 0.2 * rng.random())],
    "star": _outline_star,
    "crescent": _outline_crescent,
    "gear": _outline_gear,
    "ellipse": lambda rng: [_trace_circle() * (1.0, 0.4 + 0.2 * rng.random())],
    "square": lambda rng: [0.8 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])],
    "blob": _outline_blob,
}
