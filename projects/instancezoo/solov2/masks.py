"""How a grid cell of SOLOv2 says its mask: a kernel on one shared map (section 3.2).

Legend: N images, L levels, S grid side, D embedding size, R rows (one object, one cell), P cells,
H W map size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instancezoo.layers.dynamic_conv import dynamic_conv
from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.levels import flatten_levels, level_offsets
from instancezoo.solo.targets import CellTargets, GridObjects, reduce_masks


class KernelMasks:
    """A mask is the unified mask feature convolved with its cell's 1x1 kernel.

    Args:
        kernels: L tensors (N, D, S, S), a kernel per cell.
        mask_feature: (N, D, H, W), the unified mask feature, not negative, stride 4.
    """

    def __init__(self, kernels: list[Tensor], mask_feature: Tensor) -> None:
        self.kernels = flatten_levels(kernels)  # (N, cells of all levels, D)
        self.mask_feature = mask_feature
        offsets = level_offsets([level.shape[2] for level in kernels])
        self._offsets = torch.tensor(offsets, device=mask_feature.device)

    def dice(self, objects: GridObjects, targets: CellTargets) -> Tensor:
        """Dice loss of every row of `targets`, (R,) fp32, ordered by image."""
        masks = reduce_masks(objects, objects.canvas[0] // self.mask_feature.shape[2])
        dice = []
        for index, feature in enumerate(self.mask_feature):
            rows = (targets.image == index).nonzero().squeeze(1)
            kernels = self.select_kernels(targets, rows)
            probs = dynamic_conv(feature, kernels).sigmoid()  # (rows of the image, H, W)
            goal = masks[targets.instance[rows]]
            dice.append(dice_loss(probs.flatten(1), goal.flatten(1)))
        return torch.cat(dice)

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """Mask probabilities of one image's cells.

        Args:
            image: index in the batch.
            cells: (P,) long, indices over all levels.

        Returns:
            (P, H, W) fp32 in [0, 1].
        """
        return dynamic_conv(self.mask_feature[image], self.kernels[image, cells]).sigmoid()

    def select_kernels(self, targets: CellTargets, rows: Tensor) -> Tensor:
        """Kernels of some rows of `targets`: (r,) long, their indices -> (r, D)."""
        cells = self._offsets[targets.level[rows]] + targets.cell[rows]
        return self.kernels[targets.image[rows], cells]
