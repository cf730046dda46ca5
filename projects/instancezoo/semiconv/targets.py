"""Pixels of ground-truth objects on the levels of a feature pyramid.

Legend: M objects of all images, L levels, P cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instancezoo.layers.score_windows import locate_cells
from instancezoo.modeling.masks import boxes_from_masks
from instancezoo.modeling.objects import Objects


def list_level_cells(
    objects: Objects,
    levels: Tensor,
    strides: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of each object's level whose central pixel its mask covers.

    Args:
        objects: M objects with masks.
        levels: (M,) long, in [0, L).
        strides: of the L levels in pixels.
        sizes: rows and columns of the L levels.

    Returns:
        Object, image and cell (P,) long each. The cells of all levels are counted one after the
        other, those of a level in row-major order.
    """
    if len(levels) == 0:
        empty = levels.new_zeros(0)
        return empty, empty, empty
    grid = torch.tensor(sizes, device=levels.device)  # (L, 2)
    stride = torch.tensor(strides, device=levels.device)[levels, None]  # (M, 1)
    tight = torch.cat([boxes_from_masks(masks) for masks in objects.masks]).long()  # (M, 4)
    first = tight[:, [1, 0]] // stride  # rows, columns
    stop = torch.minimum(-(-tight[:, [3, 2]] // stride), grid[levels])
    owner, y, x = locate_cells(torch.cat([first, torch.maximum(first, stop)], dim=1))
    pixel_y, pixel_x = (((2 * p + 1) * stride[owner, 0]) // 2 for p in (y, x))

    masks = torch.cat([one.flatten() for one in objects.masks])
    shapes = torch.tensor([one.shape[1:] for one in objects.masks], device=levels.device)
    height, width = shapes[objects.image[owner]].unbind(1)  # (P,) each
    areas = shapes.prod(dim=1)[objects.image]  # (M,)
    starts = (areas.cumsum(0) - areas)[owner]
    exists = (pixel_y < height) & (pixel_x < width)
    pixels = starts + pixel_y * width + pixel_x
    inside = exists & masks[pixels.where(exists, 0)]
    cells = grid.prod(dim=1)
    cell = (cells.cumsum(0) - cells)[levels[owner]] + y * grid[levels[owner], 1] + x
    return owner[inside], objects.image[owner[inside]], cell[inside]
