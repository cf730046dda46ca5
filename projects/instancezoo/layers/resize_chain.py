"""Bilinear resizes in several steps: of whole maps, of single pixels, and as a matrix per axis.

Official codes enlarge masks in steps (to the padded input, without the padding, to the original
image). All three forms here take their weights from torch's own bilinear resize.

Legend: M maps, h w size before, H W size after, P points, R lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

# Points whose lines are resized at once, and about the number of lines per point in each step.
_POINTS_PER_CHUNK = 64
_LINES_PER_POINT = 6


@dataclass(frozen=True)
class Resize:
    """Bilinear resize to a size in pixels, half-pixel centres, without antialiasing."""

    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """Keep this many pixels at the top and the left."""

    height: int
    width: int


Step = Resize | Crop


def resize_maps(maps: Tensor, steps: Sequence[Step]) -> Tensor:
    """Apply the steps to all pixels.

    Args:
        maps: (M, h, w) fp32.
        steps: in order.

    Returns:
        (M, H, W).
    """
    for step in steps:
        if isinstance(step, Crop):
            maps = maps[:, : step.height, : step.width]
        elif tuple(maps.shape[1:]) != (step.height, step.width):
            size = step.height, step.width
            batch = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
            maps = batch[:, 0]
    return maps


def weigh_samples(
    size: tuple[int, int], steps: Sequence[Step], device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The steps as two matrices: result = rows @ map @ columns.T, except for rounding.

    Args:
        size: h and w.
        steps: in order.
        device: that of the maps.

    Returns:
        rows (H, h) and columns (W, w), fp32, mostly zeros.
    """
    rows, columns = (torch.eye(length, device=device) for length in size)
    for step in steps:
        if isinstance(step, Crop):
            rows, columns = rows[:, : step.height], columns[:, : step.width]
        else:
            rows, columns = _resize_lines(rows, step.height), _resize_lines(columns, step.width)
    return rows.T, columns.T


def resize_at_points(maps: Tensor, steps: Sequence[Step], points: Tensor) -> Tensor:
    """Single pixels of `resize_maps`, equal to the last bit to those of one map at a time.

    (Torch resizes to less than about 64 x 64 pixels by other instructions: there the last bit may
    differ.)

    Args:
        maps: (M, h, w) fp32.
        steps: in order.
        points: (P, 3) long: map, row, column of the result.

    Returns:
        (P,) values.
    """
    values = maps.new_zeros(len(points))
    owner = points[:, 0]
    # Resizing all of a map costs less if it has many points.
    whole_map = sum(step.height * step.width for step in steps)
    one_point = _LINES_PER_POINT * sum(step.height + step.width for step in steps)
    crowded = owner.bincount(minlength=len(maps)) * one_point > whole_map
    for index in crowded.nonzero().flatten().tolist():
        mine = owner == index
        whole = resize_maps(maps[index : index + 1], steps)[0]
        values[mine] = whole[points[mine, 1], points[mine, 2]]
    rest = (~crowded[owner]).nonzero().squeeze(1)
    for chosen in rest.split(_POINTS_PER_CHUNK) if len(rest) else ():
        values[chosen] = _resize_around(maps, steps, points[chosen])
    return values


def _resize_around(maps: Tensor, steps: Sequence[Step], points: Tensor) -> Tensor:
    """(P,) values, from the few samples that reach each point."""
    sizes = [maps.shape[1:], *(torch.Size((step.height, step.width)) for step in steps)]
    # Rows (P, h) and columns (P, w) that are needed before each step, and finally the points.
    needed = [(points[:, 1:2], points[:, 2:3])]
    for index in reversed(range(len(steps))):
        rows, columns = needed[0]
        if isinstance(steps[index], Resize):
            rows = _reach(rows, sizes[index][0], sizes[index + 1][0])
            columns = _reach(columns, sizes[index][1], sizes[index + 1][1])
        needed.insert(0, (rows, columns))
    owner, (rows, columns) = points[:, 0], needed[0]
    patch = maps[owner[:, None, None], rows[:, :, None], columns[:, None, :]]  # (P, h, w)
    for index, step in enumerate(steps):
        before, after = sizes[index], sizes[index + 1]
        if isinstance(step, Crop) or before == after:
            continue
        (rows, columns), (next_rows, next_columns) = needed[index], needed[index + 1]
        # Torch interpolates along rows first, then between them.
        patch = _resize_within(patch, columns, before[1], after[1], next_columns).transpose(1, 2)
        patch = _resize_within(patch, rows, before[0], after[0], next_rows).transpose(1, 2)
    return patch[:, 0, 0]


def _reach(positions: Tensor, before: int, after: int) -> Tensor:
    """Samples along an axis that reach consecutive positions (P, W), and a few more: (P, w)."""
    if before == after:
        return positions
    scale = before / after
    count = min(ceil((positions.shape[1] - 1) * scale) + 5, before)
    first = ((positions[:, :1] + 0.5) * scale - 0.5).floor().long() - 1
    steps = torch.arange(count, device=positions.device)
    return first.clamp(0, before - count) + steps


def _resize_within(
    patch: Tensor, source: Tensor, before: int, after: int, target: Tensor
) -> Tensor:
    """Resize the last axis of samples (P, h, w) at `source` (P, w); returns those at `target`.

    The samples are put in lines of full length, zeros around them, so that positions and therefore
    weights are those of the whole map.
    """
    num_points, num_lines = patch.shape[:2]
    lines = patch.new_zeros(num_points, num_lines, before)
    lines.scatter_(2, source[:, None, :].expand_as(patch), patch)
    resized = _resize_lines(lines.flatten(0, 1), after).unflatten(0, (num_points, num_lines))
    return resized.gather(2, target[:, None, :].expand(-1, num_lines, -1))


def _resize_lines(lines: Tensor, length: int) -> Tensor:
    """(R, w) -> (R, W), each line independently."""
    return resize_maps(lines[None], [Resize(len(lines), length)])[0]
