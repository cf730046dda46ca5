"""Many objects on a map of labels, for benchmarks of grouping.

Legend: h w map size.
"""

import torch
from torch import Tensor


def draw_discs(count: int, height: int, width: int, *, squared_radius: float = 0.24) -> Tensor:
    """Ellipses on a grid that fills the map: (h, w) long, 0 for none, else 1 to `count`.

    Args:
        count: ellipses.
        height, width: h, w.
        squared_radius: in cells of the grid; neighbours touch from 0.25 on.
    """
    columns = max(1, round((count * width / height) ** 0.5))
    rows = -(-count // columns)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    step_y, step_x = height / rows, width / columns
    row, column = (y / step_y).long(), (x / step_x).long()
    distance_y = (y - (row + 0.5) * step_y) / step_y
    distance_x = (x - (column + 0.5) * step_x) / step_x
    number = row * columns + column + 1
    inside = distance_y**2 + distance_x**2 < squared_radius
    return torch.where(inside & (number <= count), number, 0)
