"""Polygons to masks and to COCO RLE.

Legend: M masks, V vertices, H W image size, E ends of runs.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from instancezoo.layers.extension import find_compiled, register_fake
from instancezoo.layers.rle import cancel_pairs, find_ends
from instancezoo.layers.runs import encode_runs

# Largest coordinate of a corner in pixels: whole numbers up to it are exact in fp32.
_FARTHEST = 2.0**24


def fill_polygons(vertices: Tensor, height: int, width: int) -> Tensor:
    """Inside (even-odd) and outline of polygons: exactly the pixels that OpenCV's `fillPoly` sets.

    Args:
        vertices: (M, V, 2) x and y in pixels; truncated toward zero to whole pixels.
        height, width: size of the image in pixels.

    Returns:
        (M, H, W) bool, on the vertices' device.

    Raises:
        ValueError: vertices of another shape, or a negative size.
    """
    corners = _truncate(vertices, height, width)
    fill = find_compiled("fill_polygons", corners.device) or _fill_polygons
    return fill(corners, height, width).to(vertices.device)


def encode_polygons(vertices: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """COCO RLE of `fill_polygons`; the compiled version follows edges and visits no pixel.

    Args:
        vertices, height, width: as in `fill_polygons`.

    Returns:
        M dicts `{"size": [H, W], "counts": str}`.
    """
    corners = _truncate(vertices, height, width)
    find_runs = find_compiled("find_polygon_runs", corners.device) or _find_polygon_runs
    positions, lengths = find_runs(corners, height, width)
    return encode_runs(positions, lengths, height, width)


def _truncate(vertices: Tensor, height: int, width: int) -> Tensor:
    """Corners as int32 on the CPU."""
    if vertices.ndim != 3 or vertices.shape[2] != 2 or min(height, width) < 0:
        raise ValueError(
            f"vertices must be (M, V, 2), got {tuple(vertices.shape)}, for an image of {height} x "
            f"{width} pixels"
        )
    finite = vertices.detach().cpu().float().nan_to_num(0.0)
    return finite.clamp(-_FARTHEST, _FARTHEST).to(torch.int32)


def _fill_polygons(corners: Tensor, height: int, width: int) -> Tensor:
    """The plain version of the operator: OpenCV fills mask by mask."""
    masks = np.zeros((len(corners), height, width), dtype=np.uint8)
    if masks.size and corners.numel():
        for mask, polygon in zip(masks, corners.numpy(), strict=True):
            cv2.fillPoly(mask, [polygon], 1)
    return torch.from_numpy(masks).view(torch.bool)


def _find_polygon_runs(corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The plain version of the operator: each polygon is filled in its own window.

    Returns:
        Column-major positions (E,) long, where foreground begins or ends, and the number of them
        for each mask (M,) long.
    """
    limit = torch.tensor([width, height], dtype=torch.int32)
    if corners.numel() == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(len(corners), dtype=torch.int64)
    first = corners.amin(dim=1).clamp(min=0)  # (M, 2)
    sizes = (torch.minimum(corners.amax(dim=1) + 1, limit) - first).clamp(min=0)
    # A window ends at the image's border or beyond the polygon, so that lines are cut there only.
    shifted = corners - first[:, None]
    positions = []
    windows = zip(shifted, first.tolist(), sizes.tolist(), strict=True)
    for polygon, (x, y), (columns, rows) in windows:
        window = _fill_polygons(polygon[None], rows, columns)
        ends = find_ends(window, torch.tensor([[y, x]]), height, width)
        positions.append(cancel_pairs(ends))
    return torch.cat(positions), torch.tensor([len(part) for part in positions])


@register_fake("fill_polygons")
def _shape_masks(vertices: Tensor, height: int, width: int) -> Tensor:
    return vertices.new_empty((len(vertices), height, width), dtype=torch.bool)


@register_fake("find_polygon_runs")
def _shape_runs(vertices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    num_boundaries = torch.library.get_ctx().new_dynamic_size()
    return (
        vertices.new_empty((num_boundaries,), dtype=torch.int64),
        vertices.new_empty((len(vertices),), dtype=torch.int64),
    )
