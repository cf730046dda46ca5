"""Attributes of objects in the built-in sets, measured from their visible masks.

M instances, H W image size, P pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

OCCLUDED_BELOW = 0.9  # visible share of the object's pixels inside the image
CONCAVE_BELOW = 0.85  # share of the convex hull covered by the mask, holes filled
SMALL_BELOW = 16 * 16  # visible pixels
MIN_HOLE_SHARE = 0.02  # of the visible pixels, and at least MIN_PART_PIXELS
MIN_PART_SHARE = 0.05  # the same for a part of a split object
MIN_PART_PIXELS = 4
NEAR = 2  # pixels between neighbours
MIN_NEIGHBOURS = 2


def measure_attributes(masks: Mask, full_areas: list[int]) -> list[dict[str, bool]]:
    """Describe every object of an image.

    Args:
        masks: (M, H, W) bool, visible pixels, disjoint.
        full_areas: pixels of each object inside the image, hidden ones included.

    Returns:
        Per object:
        `occluded`: less than 90 % of its pixels are visible;
        `holes`: encloses a hole of at least 4 pixels and 2 % of its visible area;
        `split`: two or more separate parts of at least 4 pixels and 5 % of its visible area;
        `concave`: its mask, holes filled, covers less than 85 % of its convex hull;
        `small`: fewer than 16 x 16 visible pixels;
        `crowded`: two or more other objects come within 2 pixels.
    """
    labels = np.zeros(masks.shape[1:], dtype=np.int64)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    return [
        _measure_object(mask, full_area, labels)
        for mask, full_area in zip(masks, full_areas, strict=True)
    ]


def _measure_object(mask: Mask, full_area: int, labels: NDArray[np.int64]) -> dict[str, bool]:
    ys, xs = np.nonzero(mask)
    # No attribute depends on pixels farther than NEAR from the box.
    window = (
        slice(max(ys.min() - NEAR, 0), ys.max() + NEAR + 1),
        slice(max(xs.min() - NEAR, 0), xs.max() + NEAR + 1),
    )
    mask, labels = np.pad(mask[window], 1), np.pad(labels[window], 1)
    area = int(mask.sum())
    holes = _find_holes(mask)
    min_hole, min_part = (
        max(MIN_PART_PIXELS, share * area) for share in (MIN_HOLE_SHARE, MIN_PART_SHARE)
    )
    return {
        "occluded": area < OCCLUDED_BELOW * full_area,
        "holes": _count_parts(holes, min_hole, connectivity=4) >= 1,
        "split": _count_parts(mask, min_part, connectivity=8) >= 2,
        "concave": int((mask | holes).sum()) < CONCAVE_BELOW * _measure_hull(mask),
        "small": area < SMALL_BELOW,
        "crowded": _count_neighbours(mask, labels) >= MIN_NEIGHBOURS,
    }


def _find_holes(mask: Mask) -> Mask:
    # 4-connected, as the complement of 8-connected parts; pixel (0, 0) is padding, so outside.
    _, regions = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    return ~mask & (regions != regions[0, 0])


def _count_parts(mask: Mask, min_area: float, connectivity: int) -> int:
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    areas = np.bincount(parts.reshape(-1))[1:]
    return int((areas >= min_area).sum())


def _measure_hull(mask: Mask) -> float:
    """Area in pixels of the convex hull of the pixels' squares."""
    pixels = np.argwhere(mask)  # (P, 2) row and column
    corners = [pixels + (y, x) for y in (0, 1) for x in (0, 1)]
    hull = cv2.convexHull(np.concatenate(corners).astype(np.int32))
    return float(cv2.contourArea(hull))


def _count_neighbours(mask: Mask, labels: NDArray[np.int64]) -> int:
    reach = np.ones((2 * NEAR + 1, 2 * NEAR + 1), dtype=np.uint8)
    near = cv2.dilate(mask.astype(np.uint8), reach).astype(bool)
    return len(np.setdiff1d(labels[near & ~mask], [0]))
