"""The network of FCOS behind the pyramid (section 3, figure 2): modules only.

Legend: N images, C channels, H W map size of a level, L levels, K classes, D values of the
top module.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from instancezoo.modeling.levels import list_map_sizes


class FCOSOutputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        cls_logits: L tensors (N, K, H, W).
        distances: L tensors (N, 4, H, W) fp32, not negative: to the left, top, right and bottom
            side of the box, in strides.
        quality_logits: L tensors (N, 1, H, W), of centerness or IoU.
        top_features: L tensors (N, D, H, W) of the caller's module; empty without one.
        box_features: L tensors (N, C, H, W) of the box tower; empty unless `keep_box_features`.
    """

    cls_logits: list[Tensor]
    distances: list[Tensor]
    quality_logits: list[Tensor]
    top_features: list[Tensor]
    box_features: list[Tensor]

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level's maps."""
        return list_map_sizes(self.cls_logits)


class FCOSHead(nn.Module):
    """Class, box and quality of every point, by one network for all levels.

    Its parts have AdelaiDet's names, so that AdelaiDet's checkpoints load without renaming.

    Args:
        share_tower: `LevelTower` before the other two.
        cls_tower, bbox_tower: `LevelTower` of the classes, and of boxes and quality.
        cls_logits, bbox_pred, ctrness: convolutions to K, 4 and 1 channels; the first reads the
            class tower, the others the box tower.
        scales: L factors of the distances; empty for none.
        keep_box_features: if True, the outputs hold the box tower's maps.
    """

    def __init__(
        self,
        *,
        share_tower: nn.Module,
        cls_tower: nn.Module,
        bbox_tower: nn.Module,
        cls_logits: nn.Module,
        bbox_pred: nn.Module,
        ctrness: nn.Module,
        scales: nn.ModuleList,
        keep_box_features: bool = False,
    ) -> None:
        super().__init__()
        self.share_tower = share_tower
        self.cls_tower = cls_tower
        self.bbox_tower = bbox_tower
        self.cls_logits = cls_logits
        self.bbox_pred = bbox_pred
        self.ctrness = ctrness
        self.scales = scales
        self.keep_box_features = keep_box_features

    def forward(self, pyramid: list[Tensor], top_module: nn.Module | None = None) -> FCOSOutputs:
        """Predict on L feature maps (N, C, H, W); `top_module` reads the box tower too."""
        outputs = FCOSOutputs([], [], [], [], [])
        for level, features in enumerate(pyramid):
            shared = self.share_tower(features, level)
            box_features = self.bbox_tower(shared, level)
            # Half precision would round large distances to whole pixels.
            distances = self.bbox_pred(box_features).float()
            if len(self.scales):
                distances = self.scales[level](distances)
            outputs.cls_logits.append(self.cls_logits(self.cls_tower(shared, level)))
            outputs.distances.append(F.relu(distances))
            outputs.quality_logits.append(self.ctrness(box_features))
            if top_module is not None:
                outputs.top_features.append(top_module(box_features))
            if self.keep_box_features:
                outputs.box_features.append(box_features)
        return outputs
