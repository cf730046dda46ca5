"""Which feature points are positive for which instances (FCOS, section 3.1, centre sampling).

Legend: N images, L levels, K classes, M instances of all images, P points of all levels, R positive
points, Q candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from instancezoo.modeling.levels import index_levels, locate_points
from instancezoo.modeling.objects import Objects

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


@dataclass(frozen=True)
class PointTargets:
    """Class of every point, and the instances that positive points predict.

    Attributes:
        classes: (N, P) long; K for background.
        image, point, instance: (R,) long, ordered by image, then point; `instance` counts the
            instances of all images.
        coordinates: (R, 2) x and y in pixels of the network input.
        distances: (R, 4) to the left, top, right and bottom side of the instance's box, positive
            pixels.
        strides: (R,) in pixels.
    """

    classes: Tensor
    image: Tensor
    point: Tensor
    instance: Tensor
    coordinates: Tensor
    distances: Tensor
    strides: Tensor


def assign_points(
    objects: Objects,
    centers: Tensor,
    areas: Tensor,
    spec: PointSpec,
    *,
    map_sizes: Sequence[tuple[int, int]],
    num_classes: int,
) -> PointTargets:
    """Give each point the smallest instance that it is positive for.

    A point (see `locate_points`) is positive if it lies strictly inside the instance's box, on both
    axes strictly within the radius around its centre, and if the largest of its distances to the
    box's four sides is within its level's range, both ends included. The first of instances with
    equal areas wins. Only the points of each instance's window are looked at, and the result does
    not depend on the order of computation.

    Args:
        objects: ground truth of the batch.
        centers: (M, 2) x and y in pixels of the network input.
        areas: (M,), what "smallest" refers to.
        spec: see `PointSpec`.
        map_sizes: L pairs, height and width of each level's map.
        num_classes: K.

    Raises:
        ValueError: there are not equally many maps, strides and size ranges.
    """
    if not len(map_sizes) == len(spec.strides) == len(spec.size_ranges):
        raise ValueError(
            f"there are {len(map_sizes)} map sizes, {len(spec.strides)} strides and "
            f"{len(spec.size_ranges)} size ranges; each level needs one of each"
        )
    boxes, num_images = objects.boxes, objects.num_images
    points = locate_points(map_sizes, spec.strides, boxes.device).to(boxes.dtype)  # (P, 2)
    instance, level, point = _list_candidates(_bound_windows(centers, boxes, spec), map_sizes)
    kept = _is_positive(points[point], centers[instance], boxes[instance], level, spec)
    instance, point = instance[kept], point[kept]
    position = objects.image[instance] * len(points) + point
    winners = _pick_smallest(areas, instance, position, num_images * len(points))
    winners = winners.view(num_images, -1)  # (N, P)

    image, point = (winners >= 0).nonzero(as_tuple=True)
    instance, coordinates = winners[image, point], points[point]
    classes = torch.full_like(winners, num_classes)
    classes[image, point] = objects.classes[instance]
    distances = measure_distances(coordinates, boxes[instance])
    strides = boxes.new_tensor(spec.strides)[index_levels(map_sizes, boxes.device)[point]]
    return PointTargets(classes, image, point, instance, coordinates, distances, strides)


def measure_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """From points (R, 2) to the left, top, right and bottom side of boxes (R, 4) XYXY: (R, 4)."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)


def boxes_from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Undo `measure_distances`: points (R, 2), distances (R, 4) -> (R, 4) XYXY."""
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def _pick_smallest(areas: Tensor, instance: Tensor, position: Tensor, length: int) -> Tensor:
    """(length,) the instance of least area that claims each position, -1 where none does."""
    # Ranks are integers and all different: the minimum is exact in any order of computation.
    by_area = areas.sort(stable=True).indices
    rank = by_area.argsort()
    best = rank.new_full((length,), len(areas))
    best = best.scatter_reduce(0, position, rank[instance], "amin")
    return torch.cat([by_area, by_area.new_full((1,), -1)])[best]


def _bound_windows(centers: Tensor, boxes: Tensor, spec: PointSpec) -> Tensor:
    """First and last cell that may be positive, (M, L, 2, 2) float: first or last, column or row.

    They are generous by a cell, so that rounding loses none; `_is_positive` decides.
    """
    stride = boxes.new_tensor(spec.strides)[:, None]  # (L, 1)
    half = boxes.new_tensor([s // 2 for s in spec.strides])[:, None]
    highest = boxes.new_tensor(spec.size_ranges).view(-1, 2)[:, 1:]
    first, last = boxes[:, None, :2], boxes[:, None, 2:]  # (M, 1, 2)
    # A point farther than `highest` from either side is out of range.
    low, high = torch.maximum(first, last - highest), torch.minimum(last, first + highest)
    if spec.radius is not None:
        low = torch.maximum(low, centers[:, None] - stride * spec.radius)
        high = torch.minimum(high, centers[:, None] + stride * spec.radius)
    return torch.stack([((low - half) / stride).floor(), ((high - half) / stride).ceil()], dim=2)


def _list_candidates(
    windows: Tensor, map_sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Instance, level and point of every cell of every window that lies on its map: (Q,) long."""
    sizes = torch.tensor(map_sizes, device=windows.device).flip(1)  # (L, 2) columns, rows
    first = windows[:, :, 0].clamp(min=0)
    last = torch.minimum(windows[:, :, 1], (sizes - 1).to(windows.dtype))
    first, extent = first.long(), (last - first + 1).clamp(min=0).long()  # (M, L, 2)
    counts = extent.prod(dim=2).flatten()  # (M * L,)
    window = torch.repeat_interleave(counts)  # (Q,)
    step = torch.arange(len(window), device=counts.device) - (counts.cumsum(0) - counts)[window]
    columns = extent[:, :, 0].flatten()[window]
    column, row = first.flatten(0, 1)[window].unbind(1)
    column, row = column + step % columns, row + step // columns
    instance, level = window // len(sizes), window % len(sizes)
    num_points = sizes.prod(dim=1)
    starts = num_points.cumsum(0) - num_points  # (L,) first point of each level
    return instance, level, starts[level] + row * sizes[level, 0] + column


def _is_positive(
    points: Tensor, centers: Tensor, boxes: Tensor, level: Tensor, spec: PointSpec
) -> Tensor:
    """Which candidates are positive, (Q,) bool; all arguments have a row for each."""
    ranges = boxes.new_tensor(spec.size_ranges).view(-1, 2)[level]
    to_sides = measure_distances(points, boxes)
    farthest = to_sides.amax(dim=1)
    is_positive = (to_sides > 0).all(dim=1)
    is_positive &= (ranges[:, 0] <= farthest) & (farthest <= ranges[:, 1])
    if spec.radius is not None:
        reach = (boxes.new_tensor(spec.strides) * spec.radius)[level, None]
        is_positive &= ((points > centers - reach) & (points < centers + reach)).all(dim=1)
    return is_positive
