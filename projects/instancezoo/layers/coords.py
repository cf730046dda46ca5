"""Normalised coordinate channels (CoordConv), which give a convolution its position.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def append_coordinates(features: Tensor, axes: str = "xy") -> Tensor:
    """Concatenate coordinate channels after the features.

    Args:
        features: (N, C, H, W).
        axes: "xy", "x" or "y": which coordinates, in which order. x grows along columns, y along
            rows, both from -1 to 1 with both ends included.

    Returns:
        (N, C + len(axes), H, W), dtype of the features.
    """
    size = features.shape[2:]
    y, x = (
        torch.linspace(-1, 1, side, device=features.device, dtype=torch.float32) for side in size
    )
    channels = {"x": x.expand(size), "y": y[:, None].expand(size)}
    coordinates = torch.stack([channels[axis] for axis in axes]).to(features.dtype)
    return torch.cat([features, coordinates.expand(len(features), -1, -1, -1)], dim=1)
