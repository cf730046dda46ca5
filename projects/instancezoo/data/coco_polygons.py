"""Reads the polygons of one object in the forms that people write, and cuts off what is far away.

pycocotools walks along every edge in fifths of a pixel, also outside the image: a polygon with a
distant vertex exhausts its memory. V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from instancezoo.data.coco_values import BadEntry, Problem, missing_key, read_numbers

MIN_VERTICES = 3
MAX_COORDINATE = 2**31 / 5  # pycocotools holds five times a coordinate in 32 bits
MAX_LENGTH = 2**18  # pixels of edges that pycocotools walks in about ten milliseconds

Vertices = NDArray[np.float64]  # (V, 2) xy in pixels


@dataclass(frozen=True)
class CheckedMask:
    """A segmentation that covers a pixel at least.

    Args:
        segmentation: polygons, lists of 6 numbers or more, or a compressed RLE whose `counts` is a
            string.
        rle: the same as a compressed RLE.
        extent: XYXY in pixels around it, of polygons also beyond the image.
        repairs: what was changed.
    """

    segmentation: list[list[float]] | dict[str, Any]
    rle: dict[str, Any]
    extent: list[float]
    repairs: list[Problem]


def check_polygons(polygons: list[Any], height: int, width: int) -> CheckedMask:
    """Check the polygons of one object.

    Args:
        polygons: lists `[x1, y1, x2, y2, ...]`; also one such list alone, points as pairs
            `[[x1, y1], ...]`, and numbers as texts.
        height, width: pixels of the image.

    Returns:
        Polygons that cover the same pixels as the given ones. Those that reach farther than one
        image size beyond the border are clipped there, unless that would change a pixel; polygons
        with very long edges always are.

    Raises:
        BadEntry: they cannot be used, or cover no pixel.
    """
    arrays, repairs = _read_polygons(polygons)
    usable = [xy.reshape(-1, 2) for xy in arrays if len(xy) >= 2 * MIN_VERTICES and not len(xy) % 2]
    if not usable:
        raise BadEntry(
            Problem.ODD_NUMBERS if any(len(xy) % 2 for xy in arrays) else Problem.FEW_POINTS
        )
    if len(usable) < len(arrays):
        repairs.append(Problem.POLYGON_LEFT_OUT)
    vertices = np.concatenate(usable)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = np.array([width, height], dtype=np.float64)
    if (low >= size).any() or (high <= 0).any() or max(-low.min(), high.max()) > MAX_COORDINATE:
        raise BadEntry(Problem.POLYGON_OUTSIDE)
    margin = max(height, width)
    if (low < -margin).any() or (high > size + margin).any():
        clipped = [clip_polygon(xy, -margin, size + margin) for xy in usable]
        clipped = [xy for xy in clipped if len(xy) >= MIN_VERTICES]
        if not clipped:
            raise BadEntry(Problem.POLYGON_OUTSIDE)
        # Clipping may change the rounding of an edge. Keep the original if it does, unless its
        # outline is too long for pycocotools.
        is_long = sum(map(_measure_length, usable)) > MAX_LENGTH
        if is_long or _are_equal(usable, clipped, height, width):
            usable = clipped
            repairs.append(Problem.POLYGON_CLIPPED)
    segmentation = _to_lists(usable)
    rle = polygons_to_rle(segmentation, height, width)
    if not mask_util.area(rle):
        raise BadEntry(Problem.ZERO_AREA)
    return CheckedMask(segmentation, rle, [*low.tolist(), *high.tolist()], repairs)


def polygons_to_rle(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """Valid polygons of one object as compressed RLE."""
    rle: dict[str, Any] = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return rle


def clip_polygon(vertices: Vertices, low: Any, high: Any) -> Vertices:
    """Cut a polygon to a rectangle (Sutherland and Hodgman, 1974).

    A polygon that leaves the rectangle and enters it elsewhere gets edges along the border.

    Args:
        vertices: (V, 2).
        low, high: lowest and highest x and y of the rectangle, a number or (2,).

    Returns:
        (V', 2); V' is 0 if nothing is inside.
    """
    for sign, limits in ((1.0, low), (-1.0, high)):
        for axis, limit in enumerate(np.broadcast_to(limits, 2)):
            if not len(vertices):
                return vertices
            inside = sign * (vertices[:, axis] - limit)  # >= 0 inside
            following, inside_next = np.roll(vertices, -1, axis=0), np.roll(inside, -1)
            crosses = (inside < 0) != (inside_next < 0)
            steps = np.where(crosses, inside - inside_next, 1.0)
            shares = (inside / steps)[:, None]
            crossings = vertices + shares * (following - vertices)
            crossings[:, axis] = limit
            points = np.stack([vertices, crossings], axis=1)  # (V, 2, 2)
            vertices = points[np.stack([inside >= 0, crosses], axis=1)]
    return vertices


def _read_polygons(polygons: list[Any]) -> tuple[list[NDArray[np.float64]], list[Problem]]:
    if not polygons:
        raise missing_key("segmentation")
    rewritten = True
    if all(isinstance(item, int | float | str) for item in polygons):
        polygons = [polygons]  # one polygon without its list
    elif len(polygons) >= MIN_VERTICES and all(map(_is_pair, polygons)):
        polygons = [_join_pairs(polygons)]  # one polygon of points
    elif all(isinstance(item, list) and item and all(map(_is_pair, item)) for item in polygons):
        polygons = [_join_pairs(item) for item in polygons]
    else:
        rewritten = any(isinstance(item, list) and str in map(type, item) for item in polygons)
    arrays = [read_numbers(polygon, "segmentation") for polygon in polygons]
    return arrays, [Problem.POLYGON_REWRITTEN] if rewritten else []


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _join_pairs(points: list[list[Any]]) -> list[Any]:
    return [number for point in points for number in point]


def _measure_length(vertices: Vertices) -> float:
    edges = np.diff(vertices, axis=0, append=vertices[:1])
    return float(np.sqrt(np.einsum("vc,vc->v", edges, edges)).sum())


def _to_lists(polygons: list[Vertices]) -> list[list[float]]:
    return [xy.reshape(-1).tolist() for xy in polygons]


def _are_equal(first: list[Vertices], second: list[Vertices], height: int, width: int) -> bool:
    """True if polygons cover the same pixels."""
    one, other = (polygons_to_rle(_to_lists(each), height, width) for each in (first, second))
    return one == other
