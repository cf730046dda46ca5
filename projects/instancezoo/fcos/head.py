"""The network of FCOS behind the pyramid (section 3, figure 2): modules only.

Legend: N images, C channels, H W map size of a level, L levels, K classes, T top features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from instancezoo.layers.deform_conv import DeformConv
from instancezoo.modeling.towers import Scale, init_normal, prior_bias

NORMS = ("GN", "NaiveGN", "BN", "SyncBN", "none")


class FCOSOutputs(NamedTuple):
    """Maps of all levels.

    Attributes:
        class_logits: L tensors (N, K, H, W).
        distances: L tensors (N, 4, H, W) fp32, not negative: to the left, top, right and bottom
            side of the box, in strides.
        quality_logits: L tensors (N, 1, H, W), of centerness or IoU.
        top_features: L tensors (N, T, H, W) of the caller's module; empty without one.
        box_features: L tensors (N, C, H, W), what the box tower gives; empty unless asked for.
    """

    class_logits: list[Tensor]
    distances: list[Tensor]
    quality_logits: list[Tensor]
    top_features: list[Tensor]
    box_features: list[Tensor]

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level's maps."""
        return [(level.shape[2], level.shape[3]) for level in self.class_logits]


class FCOSHead(nn.Module):
    """Class, box and quality of every point, by one network for all levels.

    The names of its parts are AdelaiDet's, so that its checkpoints need no other.

    Args:
        share_tower: comes before the other two.
        cls_tower, bbox_tower: see `LevelTower`.
        cls_logits, bbox_pred, ctrness: convolutions to K, 4 and 1 channels; the first stands on the
            class tower, the others on the box tower.
        scales: L factors of the distances; empty for none.
        keep_box_features: whether the outputs hold the box tower's maps.
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
        """Predict on L feature maps (N, C, H, W); `top_module` stands on the box tower too."""
        outputs = FCOSOutputs([], [], [], [], [])
        for level, features in enumerate(pyramid):
            shared = self.share_tower(features, level)
            box_features = self.bbox_tower(shared, level)
            # Distances reach hundreds of pixels: half precision would round them to whole ones.
            distances = self.bbox_pred(box_features).float()
            if len(self.scales):
                distances = self.scales[level](distances)
            outputs.class_logits.append(self.cls_logits(self.cls_tower(shared, level)))
            outputs.distances.append(F.relu(distances))
            outputs.quality_logits.append(self.ctrness(box_features))
            if top_module is not None:
                outputs.top_features.append(top_module(box_features))
            if self.keep_box_features:
                outputs.box_features.append(box_features)
        return outputs


class LevelTower(nn.ModuleList):
    """Convolutions, norms and ReLUs in a row; a norm may be a list of one for each level."""

    def forward(self, features: Tensor, level: int) -> Tensor:
        """(N, C, H, W) of a level -> the same shape."""
        for module in self:
            norm_or_other = module[level] if isinstance(module, nn.ModuleList) else module
            features = norm_or_other(features)
        return features


def build_head(
    channels: int,
    num_levels: int,
    *,
    num_classes: int,
    num_convs: Sequence[int],
    norm: str = "GN",
    deformable: str = "",
    use_scale: bool = True,
    prior_prob: float = 0.01,
    keep_box_features: bool = False,
) -> FCOSHead:
    """Build the network with weights N(0, 0.01) and biases 0, but for the classes' prior.

    Args:
        channels: C of the pyramid and of the towers.
        num_levels: L.
        num_classes: K.
        num_convs: of the shared, the class and the box tower.
        norm: one of `NORMS`.
        deformable: "", "v1" or "v2", of the last convolution of the class and the box tower.
        use_scale: whether distances have a factor for each level.
        prior_prob: probability of each class that the network starts with.
        keep_box_features: see `FCOSHead`.
    """
    towers = [
        build_level_tower(channels, num, num_levels, norm=norm, deformable=version)
        for num, version in zip(num_convs, ("", deformable, deformable), strict=True)
    ]
    outputs = [Conv2d(channels, n, kernel_size=3, padding=1) for n in (num_classes, 4, 1)]
    for conv in outputs:
        init_normal(conv)
    nn.init.constant_(outputs[0].bias, prior_bias(prior_prob))
    return FCOSHead(
        share_tower=towers[0],
        cls_tower=towers[1],
        bbox_tower=towers[2],
        cls_logits=outputs[0],
        bbox_pred=outputs[1],
        ctrness=outputs[2],
        scales=nn.ModuleList(Scale() for _ in range(num_levels if use_scale else 0)),
        keep_box_features=keep_box_features,
    )


def build_level_tower(
    channels: int, num_convs: int, num_levels: int, *, norm: str = "GN", deformable: str = ""
) -> LevelTower:
    """Build a tower of 3x3 convolutions; they have a bias under a norm, too.

    Args:
        channels: of input and output.
        num_convs: number of convolutions.
        num_levels: L.
        norm: one of `NORMS`; batch norms have statistics, scale and shift for each level.
        deformable: "", "v1" or "v2", of the last convolution.
    """
    tower = LevelTower()
    for index in range(num_convs):
        if deformable and index == num_convs - 1:
            conv: Any = DeformConv(channels, channels, bias=True, modulated=deformable == "v2")
        else:
            conv = Conv2d(channels, channels, kernel_size=3, padding=1)
        init_normal(conv)
        tower.append(conv)
        if norm in ("BN", "SyncBN"):
            tower.append(nn.ModuleList(get_norm(norm, channels) for _ in range(num_levels)))
        elif norm != "none":
            tower.append(get_norm("GN", channels))
        tower.append(nn.ReLU())
    return tower
