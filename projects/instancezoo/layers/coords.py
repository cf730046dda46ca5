"""Normalised coordinate channels (CoordConv), which tell a convolution where it is.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_channels(features: Tensor) -> Tensor:
    """Coordinates of each position, from -1 to 1 with both ends included.

    Args:
        features: (..., H, W), gives size, device and dtype.

    Returns:
        (2, H, W): x grows along columns, y along rows.
    """
    height, width = features.shape[-2:]
    y = torch.linspace(-1, 1, height, device=features.device, dtype=torch.float32)
    x = torch.linspace(-1, 1, width, device=features.device, dtype=torch.float32)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y]).to(features.dtype)


def append_coordinates(features: Tensor, axes: str = "xy") -> Tensor:
    """Concatenate coordinate channels after the features.

    Args:
        features: (N, C, H, W).
        axes: "xy", "x" or "y": which coordinates, in which order.

    Returns:
        (N, C + len(axes), H, W).
    """
    coordinates = coordinate_channels(features)["xy".index(axes[0]) :][: len(axes)]
    return torch.cat([features, coordinates.expand(len(features), -1, -1, -1)], dim=1)
