"""Ground truth of both networks: distance to the boundary, its direction, its level.

Legend: N images, M objects of an image, K classes, H W image size, B energy levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.boundary_distance import measure_boundary_distance
from instancezoo.modeling.object_maps import count_pixels

# The weight of the pixels of an object is this, divided by the root of its area.
_AREA_WEIGHT = 200.0
_SOBEL_SUM = 8.0


@dataclass(frozen=True)
class DepthMaps:
    """What the networks learn.

    Attributes:
        depths: (N, H, W), distances to the boundary in pixels; 0 outside objects and in small ones.
        directions: (N, 2, H, W), where the depth grows, x then y; not of unit length.
        levels: (N, H, W) long, in [0, B).
        weights: (N, H, W), of the losses; 0 outside objects and in small ones.
    """

    depths: Tensor
    directions: Tensor
    levels: Tensor
    weights: Tensor


def measure_depths(
    ids: Tensor,
    *,
    edges: Sequence[float],
    min_area: int,
    sizes: Sequence[Sequence[int]] | None = None,
) -> DepthMaps:
    """Targets of disjoint objects.

    Args:
        ids: (N, H, W) long, 0 for no object.
        edges: distances above which each level starts, ascending; the first is 0.
        min_area: pixels of the smallest object that is learned from. An object that fills its map
            is not, as it has no boundary.
        sizes: height and width of each image without its padding, whose border is no boundary;
            None for images without padding. Targets of the padding have no meaning.
    """
    areas = count_pixels(ids).gather(1, ids.flatten(1)).view(ids.shape).float()
    if sizes is not None:
        ids = _repeat_border(ids, sizes)
    distances = measure_boundary_distance(ids)
    if sizes is not None:  # the slopes at the border are those of an image without padding
        areas, distances = _repeat_border(areas, sizes), _repeat_border(distances, sizes)
    counts = (areas >= min_area) & (ids > 0) & distances.isfinite()
    depths = distances.where(counts, 0.0)
    weights = (_AREA_WEIGHT * areas.clamp(min=1).rsqrt()).where(counts, 0.0)
    return DepthMaps(depths, find_slopes(depths), find_levels(depths, edges), weights)


def find_slopes(depths: Tensor) -> Tensor:
    """Sobel filters of depths (N, H, W), whose border is repeated: (N, 2, H, W), x then y."""
    # The filter is linear: that of all objects together is the sum of theirs. Differences, not a
    # convolution, which GPUs may compute in less than single precision.
    padded = F.pad(depths[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # (N, H, W + 2)
    across = smooth[:, :, 2:] - smooth[:, :, :-2]
    smooth = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]  # (N, H + 2, W)
    down = smooth[:, 2:] - smooth[:, :-2]
    return torch.stack([across, down], dim=1) / _SOBEL_SUM


def find_levels(depths: Tensor, edges: Sequence[float]) -> Tensor:
    """The level b of each depth: edges[b] < depth <= edges[b + 1]. Any shape, long."""
    return torch.bucketize(depths, depths.new_tensor(edges[1:]))


def _repeat_border(maps: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Fill the padding of maps (N, H, W) with the last row and column of each image."""
    limits = torch.tensor([[int(side) - 1 for side in size] for size in sizes], device=maps.device)
    rows, columns = (
        torch.arange(side, device=maps.device).minimum(limit[:, None])
        for side, limit in zip(maps.shape[1:], limits.unbind(1), strict=True)
    )  # (N, H), (N, W)
    images = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps[images, rows[:, :, None], columns[:, None, :]]
