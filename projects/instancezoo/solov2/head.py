"""The networks of SOLOv2 (sections 3.1 and 3.2): modules only.

Legend: N images, C channels, H W map size, L levels, S grid side, K classes, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from instancezoo.layers.coords import append_coordinates
from instancezoo.solo.head import double_map, rearrange_levels, resize_map


class SOLOv2Outputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        cate_logits: L tensors (N, K, S, S).
        kernels: L tensors (N, E, S, S), a 1x1 kernel per cell.
        mask_feature: (N, E, H/4, W/4), not negative.
    """

    cate_logits: list[Tensor]
    kernels: list[Tensor]
    mask_feature: Tensor


class SOLOv2Head(nn.Module):
    """A category and a kernel per cell, and the map that all kernels are applied to.

    Args:
        cate_tower, kernel_tower: the second takes two more channels, the coordinates.
        cate_predict, kernel_predict: convolutions to K and to E channels.
        mask_branch: see `MaskFeatureBranch`.
        num_grids: L grid sides.
        mask_levels: indices of the pyramid's levels that `mask_branch` takes.
    """

    def __init__(
        self,
        *,
        cate_tower: nn.Module,
        cate_predict: nn.Module,
        kernel_tower: nn.Module,
        kernel_predict: nn.Module,
        mask_branch: nn.Module,
        num_grids: Sequence[int],
        mask_levels: Sequence[int],
    ) -> None:
        super().__init__()
        self.cate_tower = cate_tower
        self.cate_predict = cate_predict
        self.kernel_tower = kernel_tower
        self.kernel_predict = kernel_predict
        self.mask_branch = mask_branch
        self.num_grids = list(num_grids)
        self.mask_levels = list(mask_levels)

    def forward(self, pyramid: list[Tensor]) -> SOLOv2Outputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        cate_logits, kernels = [], []
        for level, side in zip(rearrange_levels(pyramid), self.num_grids, strict=True):
            # Coordinates are made on the level's own map and resized with the features.
            cells = resize_map(append_coordinates(level), (side, side))
            kernels.append(self.kernel_predict(self.kernel_tower(cells)))
            cate_logits.append(self.cate_predict(self.cate_tower(cells[:, :-2])))
        mask_feature = self.mask_branch([pyramid[index] for index in self.mask_levels])
        return SOLOv2Outputs(cate_logits, kernels, mask_feature)


class MaskFeatureBranch(nn.Module):
    """Unified mask feature: pyramid levels brought to the finest one's size and summed (figure 3).

    Args:
        levels: per pyramid level its convolution blocks; a doubling follows each block but those of
            the finest level. The last level's first block takes two more channels, the coordinates.
        predict: 1x1 block to E channels.
    """

    def __init__(self, *, levels: nn.ModuleList, predict: nn.Module) -> None:
        super().__init__()
        self.levels = levels
        self.predict = predict

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Maps p2 .. p5 -> (N, E, H, W) of p2's size."""
        total = self.levels[0](pyramid[0])
        for index in range(1, len(pyramid)):
            features = pyramid[index]
            if index == len(pyramid) - 1:
                features = append_coordinates(features)
            blocks: Any = self.levels[index]
            for block in blocks:
                features = double_map(block(features))
            total = total + features
        return self.predict(total)
