"""Anchors as torchvision's detection models have them.

Legend: L levels, H W map size, A anchors of a cell.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors with torchvision's two roundings.

    Corners are rounded to whole pixels, and a level's stride is the padded image's size divided by
    the map's, rounded down: less than nominal where the level's stride does not divide the image.
    """

    def generate_cell_anchors(self, *args: Any, **kwargs: Any) -> Tensor:
        """Anchors around the origin: (A, 4) XYXY in pixels."""
        return super().generate_cell_anchors(*args, **kwargs).round()

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        """Anchors of L maps, (H * W * A, 4) each, cells row by row."""
        # The first map's stride divides the padded image, whose size follows from the map's.
        height, width = (length * self.strides[0] for length in grid_sizes[0])
        anchors = []
        for (rows, columns), cell_anchors in zip(grid_sizes, self.cell_anchors, strict=True):
            y = torch.arange(rows, device=cell_anchors.device) * (height // rows)
            x = torch.arange(columns, device=cell_anchors.device) * (width // columns)
            y, x = torch.meshgrid(y, x, indexing="ij")
            corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (H * W, 1, 4)
            anchors.append((corners + cell_anchors).reshape(-1, 4))
        return anchors
