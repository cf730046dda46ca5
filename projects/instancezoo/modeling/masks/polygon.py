"""Masks given by the corners of a polygon each (PolarMask).

Legend: M masks, V vertices, H W image size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.double import find_double_device
from instancezoo.layers.polygons import encode_polygons, fill_polygons

from .form import MaskForm


@dataclass(frozen=True, eq=False, repr=False)
class VertexMasks(MaskForm):
    """One polygon per mask; its inside and its outline belong to the mask.

    Vertices are truncated toward zero to whole pixels, lines between them are drawn and the
    inside (even-odd) is filled, as OpenCV's `fillPoly` does.

    Args:
        vertices: (M, V, 2) x and y in pixels of the image whose size is given later.
    """

    vertices: Tensor

    def __post_init__(self) -> None:
        if self.vertices.ndim != 3 or self.vertices.shape[2] != 2:
            raise ValueError(f"vertices must be (M, V, 2), got {tuple(self.vertices.shape)}")

    def bitmasks(self, height: int, width: int) -> Tensor:
        return fill_polygons(self.vertices, height, width)

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        return encode_polygons(self.vertices, height, width)

    def polygons(self, height: int, width: int) -> list[list[list[float]]]:
        """COCO polygons, one outline per mask, clipped to the image.

        Vertices are not shifted: a vertex is truncated to a pixel whose centre, in COCO's frame,
        is half a pixel farther, which is where the vertex is on average.

        Args:
            height, width: size in pixels of the image that the masks refer to.

        Returns:
            M lists with one list `[x0, y0, x1, y1, ...]` each, in hundredths of a pixel.
        """
        vertices = self.vertices.to(find_double_device(self.vertices.device)).double()
        inside = torch.minimum(vertices.clamp(min=0), vertices.new_tensor([width, height]))
        return [[outline] for outline in inside.round(decimals=2).flatten(1).tolist()]
