"""Distances to the two nearest labelled objects of each pixel.

Legend: N images, H W map size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Two candidates per pixel: labels (2, N, H, W) long, 0 for none, and squared distances.
_Pair = tuple[Tensor, Tensor]


@torch.no_grad()
def measure_nearest_two(
    labels: Tensor, reach: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Euclidean distances to the nearest and to the second nearest object, up to a reach.

    Exact: of each column it keeps the two nearest objects, then of each row the two nearest of
    those. An object that is third in its column is not among the two nearest of any pixel. Memory
    and time do not depend on the number of objects.

    Args:
        labels: (N, H, W) long, 0 where there is no object.
        reach: pixels; objects that are farther along a row or a column are not seen.
        dtype: of the result.

    Returns:
        Two maps (N, H, W), inf where there is no such object; 0 inside the nearest one.
    """
    far = 2 * (reach + 1) ** 2
    squares = torch.where(labels > 0, 0, far)
    pair = (
        torch.stack([labels, torch.zeros_like(labels)]),
        torch.stack([squares, torch.full_like(squares, far)]),
    )
    for axis in (0, 1):
        pair = _spread(*pair, reach, axis, far)
    distances = pair[1].to(dtype).sqrt().masked_fill(pair[0] == 0, torch.inf)
    return distances[0], distances[1]


def _spread(labels: Tensor, squares: Tensor, reach: int, axis: int, far: int) -> _Pair:
    """The two nearest objects among those of all pixels of a column (axis 0) or row (axis 1)."""
    size = labels.shape[2 + axis]
    reach = min(reach, size - 1)
    pad = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
    all_labels, all_squares = F.pad(labels, pad), F.pad(squares, pad, value=far)
    best: _Pair = (labels, squares)
    for shift in sorted(range(-reach, reach + 1), key=abs)[1:]:
        near = all_labels.narrow(2 + axis, reach + shift, size)
        there = all_squares.narrow(2 + axis, reach + shift, size) + shift * shift
        for rank in (0, 1):
            best = _insert(best, near[rank], there[rank])
    return best


def _insert(best: _Pair, label: Tensor, square: Tensor) -> _Pair:
    """Put a candidate (N, H, W) among the two nearest, each object once."""
    (first, second), (near, far) = best
    exists = label > 0
    is_first = exists & (square < near)
    # The former first moves down, unless the candidate is the same object.
    moves = is_first & (label != first)
    is_second = exists & ~is_first & (label != first) & (square < far)
    labels = label.where(is_first, first), first.where(moves, label.where(is_second, second))
    squares = square.where(is_first, near), near.where(moves, square.where(is_second, far))
    return torch.stack(labels), torch.stack(squares)
