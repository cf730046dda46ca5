"""The networks of SOLO (section 3.2) and Decoupled SOLO (section 3.4): modules only.

Legend: N images, C channels, H W map size of a level, L levels, S grid side, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from instancezoo.layers.coords import append_coordinates


class SOLOOutputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        cate_logits: L tensors (N, K, S, S).
        mask_features: L tensors (N, C, 2H, 2W), input of the output convolutions.
    """

    cate_logits: list[Tensor]
    mask_features: list[Tensor]


class DecoupledOutputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        cate_logits: L tensors (N, K, S, S).
        x_logits: L tensors (N, S, 2H, 2W), one channel per grid column.
        y_logits: L tensors (N, S, 2H, 2W), one channel per grid row.
    """

    cate_logits: list[Tensor]
    x_logits: list[Tensor]
    y_logits: list[Tensor]


class CategoryBranch(nn.Module):
    """What each cell holds.

    Args:
        tower: convolutions, one after the other.
        predict: last convolution, to K channels.
        num_grids: L grid sides.
        resize_before: number of the tower's convolution before which maps become S x S.
    """

    def __init__(
        self,
        *,
        tower: nn.Sequential,
        predict: nn.Module,
        num_grids: Sequence[int],
        resize_before: int = 0,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.predict = predict
        self.num_grids = list(num_grids)
        self.resize_before = resize_before

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L re-arranged levels (N, C, H, W) -> L logits (N, K, S, S)."""
        logits = []
        for features, side in zip(levels, self.num_grids, strict=True):
            features = self.tower[: self.resize_before](features)
            features = resize_map(features, (side, side))
            logits.append(self.predict(self.tower[self.resize_before :](features)))
        return logits


class SOLOHead(nn.Module):
    """A category per cell, and a mask channel per cell.

    Args:
        cate_branch: see `CategoryBranch`.
        mask_tower: takes features with both coordinates.
        mask_predict: L 1x1 convolutions to S * S channels.
    """

    def __init__(
        self, *, cate_branch: CategoryBranch, mask_tower: nn.Module, mask_predict: nn.ModuleList
    ) -> None:
        super().__init__()
        self.cate_branch = cate_branch
        self.mask_tower = mask_tower
        self.mask_predict = mask_predict

    def forward(self, pyramid: list[Tensor]) -> SOLOOutputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        levels = rearrange_levels(pyramid)
        features = [double_map(self.mask_tower(append_coordinates(level))) for level in levels]
        return SOLOOutputs(self.cate_branch(levels), features)

    def predict_masks(self, mask_features: Tensor, level: int, cells: Tensor) -> Tensor:
        """Mask logits of chosen cells: only their output channels are computed.

        Args:
            mask_features: (N, C, 2H, 2W) of this level.
            level: its index.
            cells: (n,) long, indices within the level.

        Returns:
            (N, n, 2H, 2W).
        """
        conv: Any = self.mask_predict[level]
        return F.conv2d(mask_features, conv.weight[cells], conv.bias[cells])


class DecoupledSOLOHead(nn.Module):
    """A category per cell, a mask channel per grid column, and one per grid row.

    Args:
        cate_branch: see `CategoryBranch`.
        mask_towers: one for x and one for y, each with its own coordinate; or a single tower with
            both coordinates that feeds both (light models).
        predict_x, predict_y: L 3x3 convolutions to S channels each.
    """

    def __init__(
        self,
        *,
        cate_branch: CategoryBranch,
        mask_towers: nn.ModuleDict,
        predict_x: nn.ModuleList,
        predict_y: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.cate_branch = cate_branch
        self.mask_towers = mask_towers
        self.predict_x = predict_x
        self.predict_y = predict_y

    def forward(self, pyramid: list[Tensor]) -> DecoupledOutputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        levels = rearrange_levels(pyramid)
        x_logits, y_logits = [], []
        for index, level in enumerate(levels):
            features = [
                double_map(tower(append_coordinates(level, axes)))
                for axes, tower in self.mask_towers.items()
            ]
            x_logits.append(self.predict_x[index](features[0]))
            y_logits.append(self.predict_y[index](features[-1]))
        return DecoupledOutputs(self.cate_branch(levels), x_logits, y_logits)


def rearrange_levels(pyramid: list[Tensor]) -> list[Tensor]:
    """Halve the finest level, and bring the coarsest to the size of the one before.

    Args:
        pyramid: L tensors (N, C, H, W) of strides 4, 8, 16, 32, 64.

    Returns:
        L tensors of strides 8, 8, 16, 32, 32.
    """
    finest = pyramid[0]
    height, width = finest.shape[2:]
    halved = resize_map(finest, (height // 2, width // 2))
    enlarged = resize_map(pyramid[-1], (pyramid[-2].shape[2], pyramid[-2].shape[3]))
    return [halved, *pyramid[1:-1], enlarged]


def rearrange_strides(strides: Sequence[int]) -> list[int]:
    """Strides of `rearrange_levels`' output, given those of its input."""
    return [2 * strides[0], *strides[1:-1], strides[-2]]


def double_map(features: Tensor) -> Tensor:
    """Bilinear enlargement by two of (N, C, H, W)."""
    height, width = features.shape[2:]
    return resize_map(features, (2 * height, 2 * width))


def resize_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, H, W), half-pixel centres, without antialiasing."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
