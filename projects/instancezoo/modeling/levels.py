"""Pyramid levels of dense heads: which object belongs where, and maps of several levels as one.

Legend: N images, C channels, L levels, M instances, S grid side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def match_scale_ranges(sizes: Tensor, ranges: Tensor) -> Tensor:
    """Levels that answer for objects of given sizes; ranges may overlap.

    Args:
        sizes: (M,) pixels.
        ranges: (L, 2) pixels, lowest and highest size, both included.

    Returns:
        (M, L) bool.
    """
    return (sizes[:, None] >= ranges[:, 0]) & (sizes[:, None] <= ranges[:, 1])


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Join the maps of all levels, row-major within a level.

    Args:
        maps: L tensors (N, C, H_l, W_l).

    Returns:
        (N, sum of H_l * W_l, C).
    """
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)


def level_offsets(num_grids: Sequence[int]) -> list[int]:
    """Index of each level's first cell in the order of `flatten_levels`, and the total.

    Args:
        num_grids: L grid sides.

    Returns:
        L + 1 numbers.
    """
    offsets = [0]
    for side in num_grids:
        offsets.append(offsets[-1] + side * side)
    return offsets
