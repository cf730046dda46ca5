"""Mask representation of SOLOv2's grid cells: a kernel on one shared map (section 3.2).

Legend: N images, L levels, S grid side, D embedding size, R rows (one object, one cell), P cells,
H W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instancezoo.layers.dynamic_conv import dynamic_conv
from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.levels import flatten_levels
from instancezoo.solo.targets import CellTargets, GridObjects, reduce_masks


class KernelMasks:
    """`CellMasks` that are the unified mask feature, convolved with each cell's 1x1 kernel.

    Args:
        kernels: L tensors (N, D, S, S), a kernel per cell.
        mask_feature: (N, D, H, W), the unified mask feature, not negative, stride 4.
    """

    def __init__(self, kernels: list[Tensor], mask_feature: Tensor) -> None:
        self.kernels = flatten_levels(kernels)  # (N, cells of all levels, D)
        self.mask_feature = mask_feature

    def dice(self, objects: GridObjects, targets: CellTargets) -> Tensor:
        """See `CellMasks.dice`; rows are ordered by image."""
        masks = reduce_masks(objects, objects.canvas[0] // self.mask_feature.shape[2])
        dice = []
        for image in range(len(self.kernels)):
            rows = (targets.image == image).nonzero().squeeze(1)
            probs = self.probs(image, targets.cell[rows])
            dice.append(dice_loss(probs.flatten(1), masks[targets.instance[rows]].flatten(1)))
        return torch.cat(dice)

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """See `CellMasks.probs`."""
        return dynamic_conv(self.mask_feature[image], self.kernels[image, cells]).sigmoid()
