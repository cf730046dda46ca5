"""Seeded watershed (scikit-image) and what surrounds it, on the CPU.

Legend: H W map size, M labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from instancezoo.optional import import_optional

Labels = NDArray[np.int64]
LEVELS = 255  # probabilities are whole numbers up to this
_EXTRA, _WANTED_BY = "'instancezoo[bottomup]'", "MODEL.META_ARCHITECTURE 'BoundaryUNet'"


def flood(
    heights: NDArray[Any], seeds: NDArray[Any], mask: NDArray[np.bool_], *, draw_line: bool
) -> Labels:
    """Seeds grow in the order of heights, then of arrival, to their four neighbours.

    Args:
        heights: (H, W) uint8.
        seeds: (H, W) whole numbers, 0 for none.
        mask: (H, W), where they may grow.
        draw_line: leave a line of 0 between labels that meet.

    Returns:
        (H, W) int64, 0 for none.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    segmentation = _import_part("segmentation")
    labels = segmentation.watershed(heights, seeds, mask=mask, watershed_line=draw_line)
    return np.asarray(labels, np.int64)


def split_parts(labels: Labels) -> Labels:
    """Number the 8-connected parts of labels, by label first, then by their first pixels."""
    measure = _import_part("measure")
    parts = np.asarray(measure.label(labels, background=0, connectivity=2), np.int64)
    owners = np.zeros(parts.max(initial=0) + 1, np.int64)
    owners[parts.ravel()] = labels.ravel()
    numbers = np.zeros_like(owners)
    numbers[1 + np.argsort(owners[1:], kind="stable")] = np.arange(1, len(owners))
    return numbers[parts]


def drop_small(labels: Labels, min_size: int) -> Labels:
    """Remove labels of fewer pixels, and number the others from 1 on in the same order."""
    sizes = np.bincount(labels.ravel())
    kept = sizes >= max(min_size, 1)
    kept[:1] = False
    return np.where(kept, kept.cumsum(), 0)[labels]


def _import_part(name: str) -> Any:
    return import_optional(f"skimage.{name}", _EXTRA, _WANTED_BY)
