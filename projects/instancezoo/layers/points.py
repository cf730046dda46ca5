"""Points on maps and masks: reading, choosing uncertain ones, refining a grid (PointRend).

Legend: N images, L levels, R regions, P Q points, C channels, H W map size, M masks, S grid side.

A point is (x, y). In the frame of a region both lie in [0, 1]; on a map they count its cells, and
cell (row i, column j) has its centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# (R, P, 2) points in the frame of their region -> (R, P) logits
EvaluatePoints = Callable[[Tensor], Tensor]

# The four cells around a point, as (column, row) steps from the upper left one.
_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


class PointSampler:
    """Reads maps of a batch at points of any of its images, all in one call.

    Values are interpolated bilinearly between cell centres and are 0 outside the map, as
    `grid_sample` with `align_corners=False` gives them, in fp32 or higher.

    Args:
        maps: L tensors (N, C_l, H_l, W_l).
        strides: L sizes of a cell, in the unit of the points that are read.
    """

    def __init__(self, maps: Sequence[Tensor], strides: Sequence[float]) -> None:
        self.sizes = [(level.shape[2], level.shape[3]) for level in maps]
        self.strides = list(strides)
        # One row a cell: the four rows around a point are then read as whole blocks of memory.
        self.tables = [
            _to_float(level).permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps
        ]

    def __call__(self, owners: Tensor, points: Tensor) -> Tensor:
        """Read all maps at points.

        Args:
            owners: (R,) long, index of the image that each region's points lie in.
            points: (R, P, 2), in the unit of the strides.

        Returns:
            (R, P, sum of C_l) fp32; gradients reach the maps.
        """
        values = []
        for table, size, stride in zip(self.tables, self.sizes, self.strides, strict=True):
            cells, weights = _find_corners(owners, _to_float(points) / stride, size)
            cells, weights = cells.flatten(0, 1), weights.flatten(0, 1).to(table.dtype)
            read = F.embedding_bag(cells, table, per_sample_weights=weights, mode="sum")
            values.append(read.unflatten(0, points.shape[:2]))  # (R, P, C_l)
        return torch.cat(values, dim=2)


def sample_masks(masks: Tensor, owners: Tensor, points: Tensor) -> Tensor:
    """Read single-channel masks at points; only the cells around the points are touched.

    Args:
        masks: (M, H, W), any dtype.
        owners: (R,) long, index of each region's mask.
        points: (R, P, 2), in pixels of the masks.

    Returns:
        (R, P) fp32, in [0, 1] for bool masks: the share of the mask in the four pixels around.
    """
    cells, weights = _find_corners(owners, _to_float(points), (masks.shape[1], masks.shape[2]))
    return (masks.flatten()[cells].float() * weights).sum(dim=2)


def make_grid_points(side: int, device: torch.device | None = None) -> Tensor:
    """Centres of a regular grid's cells in the frame of a region, row-major: (S * S, 2)."""
    centers = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1)


def place_points(points: Tensor, boxes: Tensor) -> Tensor:
    """Map points from the frame of their box into the image.

    Args:
        points: (R, P, 2), in [0, 1].
        boxes: (R, 4) XYXY in pixels.

    Returns:
        (R, P, 2) fp32, in pixels.
    """
    boxes = boxes.float()
    corners, sizes = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    return points.float() * sizes + corners


def measure_uncertainty(logits: Tensor) -> Tensor:
    """Uncertainty of a prediction: 0 on the contour, lower the farther the logit is from 0."""
    return -logits.float().abs()


def choose_points(candidates: Tensor, uncertainty: Tensor, fresh: Tensor, count: int) -> Tensor:
    """Points to train on: the most uncertain of many, and some that cover the rest (section 3.1).

    Args:
        candidates: (R, P, 2), in [0, 1].
        uncertainty: (R, P).
        fresh: (R, Q, 2), all taken.
        count: number of candidates that are kept.

    Returns:
        (R, count + Q, 2): the candidates, most uncertain first, then `fresh`.
    """
    chosen = uncertainty.topk(count, dim=1).indices
    return torch.cat([candidates.take_along_dim(chosen[..., None], dim=1), fresh], dim=1)


def select_uncertain_cells(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cells of each map with the most uncertain predictions.

    Args:
        logits: (R, H, W).
        count: number of cells; all if there are fewer.

    Returns:
        Cells (R, P) long, row-major, and their centres (R, P, 2) in the frame of the region.
    """
    height, width = logits.shape[1:]
    uncertainty = measure_uncertainty(logits).flatten(1)
    cells = uncertainty.topk(min(count, height * width), dim=1).indices
    columns, rows = (cells % width).float(), (cells // width).float()
    return cells, torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=2)


def plan_subdivision(side: int, num_steps: int, num_points: int) -> tuple[int, int]:
    """Skip the steps that would evaluate every cell.

    Args:
        side: S, of the coarse grid.
        num_steps: doublings of the coarse grid.
        num_points: cells evaluated after each doubling.

    Returns:
        Side of the grid that is evaluated as a whole, and number of doublings left.
    """
    while 4 * side * side <= num_points:
        side, num_steps = 2 * side, num_steps - 1
    return side, max(num_steps, 0)


def subdivide(logits: Tensor, num_steps: int, num_points: int, evaluate: EvaluatePoints) -> Tensor:
    """Double a grid repeatedly and evaluate its most uncertain cells (section 3.2).

    All other cells keep their interpolated value.

    Args:
        logits: (R, H, W), one mask a region.
        num_steps: number of doublings.
        num_points: cells of each mask that are evaluated after each doubling.
        evaluate: gives the logits of points.

    Returns:
        (R, H * 2 ** num_steps, W * 2 ** num_steps).
    """
    for _ in range(num_steps):
        logits = F.interpolate(
            logits[:, None], scale_factor=2, mode="bilinear", align_corners=False
        )[:, 0]
        cells, points = select_uncertain_cells(logits, num_points)
        values = evaluate(points).to(logits.dtype)
        logits = logits.flatten(1).scatter(1, cells, values).view_as(logits)
    return logits


def _to_float(values: Tensor) -> Tensor:
    """At least fp32: half precision is too coarse for positions and weights."""
    return values if values.dtype == torch.float64 else values.float()


def _find_corners(owners: Tensor, points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each point, numbered over all maps, and their weights: (R, P, 4)."""
    height, width = size
    limit = points.new_tensor([width, height])
    # A point more than half a cell outside meets no cell: clamping it changes nothing.
    position = torch.minimum((points - 0.5).clamp(min=-1), limit)
    first = position.floor()
    share = (position - first)[:, :, None]  # (R, P, 1, 2)
    steps = torch.tensor(_CORNERS, device=points.device)
    corners = first.long()[:, :, None] + steps  # (R, P, 4, 2) column, row
    last = torch.tensor([width - 1, height - 1], device=points.device)
    inside = ((corners >= 0) & (corners <= last)).all(dim=3)
    weights = torch.where(steps.bool(), share, 1 - share).prod(dim=3) * inside
    columns, rows = torch.minimum(corners.clamp(min=0), last).unbind(dim=3)
    return (owners[:, None, None] * height + rows) * width + columns, weights
