"""Which feature points are positive for which instances (FCOS, section 3.1, centre sampling).

Legend: N images, L levels, M instances of all images, P points of all levels, Q candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# No limit for the first and the last level, in pixels.
_LOWEST, _HIGHEST = -1.0, 1e8


@dataclass(frozen=True)
class PointSpec:
    """Which points are positive for which objects.

    Attributes:
        strides: L numbers of pixels.
        sizes_of_interest: L - 1 numbers of pixels that part the levels: a point is positive where
            the largest of its distances to the sides of the box is in its level's range.
        radius: in strides; a point is positive within it around the object's centre. None for every
            point inside the box.
    """

    strides: Sequence[int]
    sizes_of_interest: Sequence[float]
    radius: float | None = 1.5

    @property
    def size_ranges(self) -> list[tuple[float, float]]:
        """L pairs in pixels, lowest and highest distance, both included."""
        return list(pairwise([_LOWEST, *self.sizes_of_interest, _HIGHEST]))


def assign_points(
    centers: Tensor,
    boxes: Tensor,
    areas: Tensor,
    image_index: Tensor,
    spec: PointSpec,
    *,
    num_images: int,
    map_sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """Give each point the smallest instance that it is positive for.

    A point (see `locate_points`) is positive if it lies strictly inside the instance's box, on both
    axes strictly within the radius around its centre, and if the largest of its distances to the
    box's four sides is within its level's range, both ends included. The first of instances with
    equal areas wins. Only the points of each instance's window are looked at, and the result does
    not depend on the order of computation.

    Args:
        centers: (M, 2) x and y in pixels of the network input.
        boxes: (M, 4) XYXY in the same frame.
        areas: (M,), what "smallest" refers to.
        image_index: (M,) long, in [0, N).
        spec: see `PointSpec`.
        num_images: N.
        map_sizes: L pairs, height and width of each level's map.

    Returns:
        (N, P) long, index of the winning instance in [0, M), -1 where there is none. Levels follow
        each other, row-major within a level.

    Raises:
        ValueError: there are not equally many maps, strides and size ranges.
    """
    if not len(map_sizes) == len(spec.strides) == len(spec.size_ranges):
        raise ValueError(
            f"there are {len(map_sizes)} map sizes, {len(spec.strides)} strides and "
            f"{len(spec.size_ranges)} size ranges; each level needs one of each"
        )
    sizes = torch.tensor(map_sizes, device=boxes.device).flip(1)  # (L, 2) columns, rows
    counts = sizes.prod(dim=1)
    starts = counts.cumsum(0) - counts  # (L,) first point of each level
    num_points = sum(height * width for height, width in map_sizes)

    windows = _bound_windows(centers, boxes, spec)
    instance, level, cell = _list_cells(windows, sizes)  # (Q,), (Q,), (Q, 2) column, row
    kept = _is_candidate(centers, boxes, instance, level, cell, spec)
    instance, level, cell = instance[kept], level[kept], cell[kept]
    point = starts[level] + cell[:, 1] * sizes[level, 0] + cell[:, 0]
    position = image_index[instance] * num_points + point
    winners = _pick_smallest(areas, instance, position, num_images * num_points)
    return winners.view(num_images, num_points)


def _pick_smallest(areas: Tensor, instance: Tensor, position: Tensor, length: int) -> Tensor:
    """(length,) the instance of least area that claims each position, -1 where none does."""
    # Ranks are integers and all different: the minimum is exact in any order of computation.
    by_area = areas.sort(stable=True).indices
    rank = torch.empty_like(by_area)
    rank[by_area] = torch.arange(len(areas), device=areas.device)
    best = rank.new_full((length,), len(areas))
    best = best.scatter_reduce(0, position, rank[instance], "amin")
    return torch.cat([by_area, by_area.new_full((1,), -1)])[best]


def _bound_windows(centers: Tensor, boxes: Tensor, spec: PointSpec) -> Tensor:
    """First and last cell that may qualify, (M, L, 2, 2) float: first or last, column or row.

    They are generous by a cell, so that rounding loses none; `_is_candidate` decides.
    """
    stride = boxes.new_tensor(spec.strides)[:, None]  # (L, 1)
    half = boxes.new_tensor([s // 2 for s in spec.strides])[:, None]
    highest = boxes.new_tensor(spec.size_ranges).view(-1, 2)[:, 1:]
    first, last = boxes[:, None, :2], boxes[:, None, 2:]  # (M, 1, 2)
    # A point further than `highest` from either side is out of range.
    low, high = torch.maximum(first, last - highest), torch.minimum(last, first + highest)
    if spec.radius is not None:
        low = torch.maximum(low, centers[:, None] - stride * spec.radius)
        high = torch.minimum(high, centers[:, None] + stride * spec.radius)
    return torch.stack([((low - half) / stride).floor(), ((high - half) / stride).ceil()], dim=2)


def _list_cells(windows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every cell of every window that lies on its map.

    Returns:
        instance (Q,), level (Q,), cell (Q, 2) column and row, long.
    """
    first = windows[:, :, 0].clamp(min=0)
    last = torch.minimum(windows[:, :, 1], (sizes - 1).to(windows.dtype))
    first, extent = first.long(), (last - first + 1).clamp(min=0).long()  # (M, L, 2)
    counts = extent.prod(dim=2).flatten()  # (M * L,)
    window = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # (Q,)
    begin = counts.cumsum(0) - counts
    step = torch.arange(len(window), device=counts.device) - begin[window]
    columns = extent[:, :, 0].flatten()[window]
    offset = torch.stack([step % columns, step // columns], dim=1)
    num_levels = len(sizes)
    return window // num_levels, window % num_levels, first.flatten(0, 1)[window] + offset


def _is_candidate(
    centers: Tensor,
    boxes: Tensor,
    instance: Tensor,
    level: Tensor,
    cell: Tensor,
    spec: PointSpec,
) -> Tensor:
    """Tell which pairs of a point and an instance qualify, (Q,) bool."""
    steps = torch.tensor(spec.strides, device=boxes.device)[level]  # (Q,)
    points = (cell * steps[:, None] + (steps // 2)[:, None]).to(boxes.dtype)
    ranges = boxes.new_tensor(spec.size_ranges).view(-1, 2)[level]
    to_sides = torch.cat([points - boxes[instance, :2], boxes[instance, 2:] - points], dim=1)
    farthest = to_sides.amax(dim=1)
    qualifies = (to_sides > 0).all(dim=1)
    qualifies &= (ranges[:, 0] <= farthest) & (farthest <= ranges[:, 1])
    if spec.radius is not None:
        reach = (steps * spec.radius).to(boxes.dtype)[:, None]
        center = centers[instance]
        qualifies &= ((points > center - reach) & (points < center + reach)).all(dim=1)
    return qualifies
