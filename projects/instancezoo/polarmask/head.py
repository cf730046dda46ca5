"""The network of PolarMask (section 3.1): modules only.

Legend: N images, C channels, H W map size of a level, L levels, K classes, V rays.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from instancezoo.modeling.levels import list_map_sizes
from instancezoo.modeling.towers import Scale


class PolarMaskOutputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        cls_logits: L tensors (N, K, H, W).
        ctr_logits: L tensors (N, 1, H, W).
        boxes: L tensors (N, 4, H, W) fp32, distances to left, top, right, bottom in pixels; empty
            without a box branch.
        rays: L tensors (N, V, H, W) fp32, distances to the contour in pixels.
    """

    cls_logits: list[Tensor]
    ctr_logits: list[Tensor]
    boxes: list[Tensor]
    rays: list[Tensor]

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level's maps."""
        return list_map_sizes(self.cls_logits)


class PolarMaskHead(nn.Module):
    """Class, centerness, box and rays of every point, by one network for all levels.

    Args:
        cls_tower, mask_tower: convolutions, (N, C, H, W) -> (N, C, H, W).
        bbox_tower: the same for boxes; None without a box branch.
        cls_logits, ctrness: convolutions on `cls_tower` to K and 1 channels.
        ray_pred: convolution on `mask_tower` to V channels.
        bbox_pred: convolution on `bbox_tower` to 4 channels; None without a box branch.
        num_levels: L.
    """

    def __init__(
        self,
        *,
        cls_tower: nn.Module,
        mask_tower: nn.Module,
        bbox_tower: nn.Module | None,
        cls_logits: nn.Module,
        ctrness: nn.Module,
        ray_pred: nn.Module,
        bbox_pred: nn.Module | None,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.cls_tower = cls_tower
        self.mask_tower = mask_tower
        self.cls_logits = cls_logits
        self.ctrness = ctrness
        self.ray_pred = ray_pred
        self.scales_ray = _make_scales(num_levels)
        self.bbox_tower, self.bbox_pred = bbox_tower, bbox_pred
        self.scales_bbox = None if bbox_tower is None else _make_scales(num_levels)

    def forward(self, pyramid: list[Tensor]) -> PolarMaskOutputs:
        """Feature maps p3 .. p7, each (N, C, H, W)."""
        outputs = PolarMaskOutputs([], [], [], [])
        for level, features in enumerate(pyramid):
            cls_features = self.cls_tower(features)
            outputs.cls_logits.append(self.cls_logits(cls_features))
            # FCOS has its centerness on the box tower.
            outputs.ctr_logits.append(self.ctrness(cls_features))
            # Half precision has too few digits for pixels: scale and exp stay in fp32.
            rays = self.ray_pred(self.mask_tower(features))
            outputs.rays.append(self.scales_ray[level](rays.float()).exp())
            if self.scales_bbox is not None:
                assert self.bbox_tower is not None and self.bbox_pred is not None
                boxes = self.bbox_pred(self.bbox_tower(features))
                outputs.boxes.append(self.scales_bbox[level](boxes.float()).exp())
        return outputs


def _make_scales(num_levels: int) -> nn.ModuleList:
    return nn.ModuleList(Scale() for _ in range(num_levels))
