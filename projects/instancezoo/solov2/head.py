"""The networks of SOLOv2 (sections 3.1 and 3.2), and how a config builds them.

Legend: N images, C channels, H W map size, L levels, S grid side, K classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from instancezoo.layers.coords import append_coordinates
from instancezoo.modeling.towers import build_conv_block, build_prediction, build_tower
from instancezoo.solo.head import build_grid_tower, double_map, rearrange_levels
from instancezoo.solo.masks import GridOutputs, resize_map

from .config import find_mask_levels
from .masks import KernelMasks


class SOLOv2Head(nn.Module):
    """A category and a kernel per cell, and the map that all kernels are applied to.

    Args:
        cate_tower, kernel_tower: the second takes two more channels, the coordinates.
        cate_predict, kernel_predict: convolutions to K and to D channels.
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

    def forward(self, pyramid: list[Tensor]) -> GridOutputs:
        """Feature maps p2 .. p6, each (N, C, H, W)."""
        cls_logits, kernels = [], []
        for level, side in zip(rearrange_levels(pyramid), self.num_grids, strict=True):
            # Coordinates are made on the level's own map and resized with the features.
            cells = resize_map(append_coordinates(level), (side, side))
            kernels.append(self.kernel_predict(self.kernel_tower(cells)))
            cls_logits.append(self.cate_predict(self.cate_tower(cells[:, :-2])))
        mask_feature = self.mask_branch([pyramid[index] for index in self.mask_levels])
        return GridOutputs(cls_logits, KernelMasks(kernels, mask_feature))


class MaskFeatureBranch(nn.Module):
    """Unified mask feature: pyramid levels brought to the finest one's size and summed (figure 3).

    Args:
        levels: convolution blocks of each pyramid level; a doubling follows each block, except on
            the finest level. The last level's first block takes two more channels, the coordinates.
        predict: 1x1 block to D channels.
    """

    def __init__(self, *, levels: nn.ModuleList, predict: nn.Module) -> None:
        super().__init__()
        self.levels = levels
        self.predict = predict

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Maps p2 .. p5 -> (N, D, H, W) of p2's size."""
        finest, *others = pyramid
        if others:
            others[-1] = append_coordinates(others[-1])
        total = self.levels[0](finest)
        for features, blocks in zip(others, self.levels[1:], strict=True):
            for block in blocks.children():
                features = double_map(block(features))
            total = total + features
        return self.predict(total)


def build_head_parts(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `SOLOv2Head` from `cfg.MODEL.SOLOV2`."""
    node, in_channels = cfg.MODEL.SOLOV2, cfg.MODEL.FPN.OUT_CHANNELS
    width = node.INSTANCE_CHANNELS
    return {
        "cate_tower": build_grid_tower(node, in_channels),
        "cate_predict": build_prediction(width, node.NUM_CLASSES, prior=node.PRIOR_PROB),
        "kernel_tower": build_grid_tower(node, in_channels + 2),
        "kernel_predict": build_prediction(width, node.NUM_KERNELS),
        "mask_branch": _build_mask_branch(node, in_channels),
        "num_grids": node.NUM_GRIDS,
        "mask_levels": find_mask_levels(node),
    }


def _build_mask_branch(node: CfgNode, in_channels: int) -> MaskFeatureBranch:
    options = {"norm": node.NORM, "deformable": "v2" if node.DCN_IN_MASK_HEAD else ""}
    num_levels = len(node.MASK_IN_FEATURES)
    levels = nn.ModuleList()
    for index in range(num_levels):
        channels = in_channels + (2 if 0 < index == num_levels - 1 else 0)  # the coordinates
        levels.append(build_tower(channels, node.MASK_CHANNELS, max(index, 1), **options))
    predict = build_conv_block(node.MASK_CHANNELS, node.NUM_KERNELS, kernel_size=1, **options)
    return MaskFeatureBranch(levels=levels, predict=predict)
