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

# The weight of the pixels of an object is this, divided by the root of its area.
_AREA_WEIGHT = 200.0
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
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


def measure_depths(ids: Tensor, *, edges: Sequence[float], min_area: int) -> DepthMaps:
    """Targets of disjoint objects.

    Args:
        ids: (N, H, W) long, 0 for no object.
        edges: distances above which each level starts, ascending; the first is 0.
        min_area: pixels of the smallest object that is learned from. An object that fills its map
            is not, as it has no boundary.
    """
    distances = measure_boundary_distance(ids)
    areas = _measure_areas(ids)
    counts = (areas >= min_area) & (ids > 0) & distances.isfinite()
    depths = distances.where(counts, 0.0)
    weights = (_AREA_WEIGHT * areas.clamp(min=1).rsqrt()).where(counts, 0.0)
    return DepthMaps(depths, find_slopes(depths), find_levels(depths, edges), weights)


def find_slopes(depths: Tensor) -> Tensor:
    """Sobel filters of depths (N, H, W), whose border is repeated: (N, 2, H, W), x then y."""
    # The filter is linear: that of all objects together is the sum of theirs.
    across = depths.new_tensor(_SOBEL) / _SOBEL_SUM
    filters = torch.stack([across, across.T])[:, None]
    padded = F.pad(depths[:, None], (1, 1, 1, 1), mode="replicate")
    with torch.autocast(depths.device.type, enabled=False):
        return F.conv2d(padded, filters)


def find_levels(depths: Tensor, edges: Sequence[float]) -> Tensor:
    """The level b of each depth: edges[b] < depth <= edges[b + 1]. Any shape, long."""
    return torch.bucketize(depths, depths.new_tensor(edges[1:]))


def _measure_areas(ids: Tensor) -> Tensor:
    """Pixels of the object that each pixel belongs to, (N, H, W) fp32."""
    size = int(ids.amax()) + 1 if ids.numel() else 1
    starts = torch.arange(len(ids), device=ids.device)[:, None, None] * size
    owners = (ids + starts).flatten()
    areas = owners.bincount(minlength=len(ids) * size)
    return areas[owners].view(ids.shape).float()
