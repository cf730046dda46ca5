"""Masks given by the corners of a polygon each (PolarMask).

Legend: N masks, V vertices, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.polygons import encode_polygons, fill_polygons

from .indexing import keep_dimension


class VertexMasks:
    """One polygon per mask; its inside and its outline belong to the mask.

    Vertices are truncated toward zero to whole pixels, lines between them are drawn and the
    inside (even-odd) is filled, as OpenCV's `fillPoly` does.

    Args:
        vertices: (N, V, 2) x and y in pixels of the image whose size is given later.
    """

    def __init__(self, vertices: Tensor) -> None:
        if vertices.ndim != 3 or vertices.shape[2] != 2:
            raise ValueError(f"vertices must be (N, V, 2), got {tuple(vertices.shape)}")
        self.vertices = vertices

    def __len__(self) -> int:
        return len(self.vertices)

    def __getitem__(self, item: int | slice | Tensor) -> VertexMasks:
        return VertexMasks(self.vertices[keep_dimension(item, len(self))])

    def to(self, *args: Any, **kwargs: Any) -> VertexMasks:
        """Move or cast the vertices, as `Tensor.to`."""
        return VertexMasks(self.vertices.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[VertexMasks]) -> VertexMasks:
        """Join forms with the same number of vertices."""
        return VertexMasks(torch.cat([part.vertices for part in parts]))

    def bitmasks(self, height: int, width: int) -> Tensor:
        """Full-size masks.

        Args:
            height, width: size of the image that the vertices refer to, in pixels.

        Returns:
            (N, H, W) bool.
        """
        return fill_polygons(self.vertices, height, width)

    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        """COCO RLE of the same masks, from the edges straight to runs.

        Args:
            height, width: size of the image that the vertices refer to, in pixels.

        Returns:
            N dicts `{"size": [H, W], "counts": str}`.
        """
        return encode_polygons(self.vertices, height, width)

    def polygons(self, height: int, width: int) -> list[list[list[float]]]:
        """COCO polygons, one outline per mask, cut off at the image's border.

        Vertices stay where they are: the pixel that one is truncated to has its centre, in COCO's
        frame, half a pixel beyond the truncated vertex, which is where the vertex is on average.

        Args:
            height, width: size of the image that the vertices refer to, in pixels.

        Returns:
            N lists with one list `[x0, y0, x1, y1, ...]` each, in hundredths of a pixel.
        """
        limit = self.vertices.new_tensor([width, height], dtype=torch.float64)
        inside = torch.minimum(self.vertices.double().clamp(min=0), limit)
        return [[outline] for outline in inside.round(decimals=2).flatten(1).tolist()]
