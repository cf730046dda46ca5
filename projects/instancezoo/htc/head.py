"""The networks of HTC: mask heads that pass features on, and the semantic branch.

Legend: N images, C channels, H W map size, R regions of all images, S side of a region,
K classes, D width of heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from .config import count_semantic_classes


@ROI_MASK_HEAD_REGISTRY.register()
class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """The mask head of one stage; it can take the features of the stage before (section 3.1).

    Args:
        input_shape: of the pooled features.
        conv_dims: widths of the 3x3 convolutions, then that of the upsampled map.
        takes_previous: build `conv_res`, which adapts the features of the stage before.
        kwargs: further arguments of `MaskRCNNConvUpsampleHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: list[int],
        takes_previous: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        if takes_previous:
            width = conv_dims[-2] if len(conv_dims) > 1 else input_shape.channels
            self.conv_res = _make_conv(width, input_shape.channels, 1)

    def forward(
        self, features: Tensor, previous: Tensor | None = None, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the features that the next stage gets, and masks.

        Args:
            features: (R, C, S, S), pooled.
            previous: (R, D, S, S), those of the stage before on the same regions.
            classes: (R,) long; None if this stage's masks are not needed.

        Returns:
            (R, D, S, S) features, and (R, 1, 2S, 2S) fp32 logits of each region's class or None.
        """
        if previous is not None:
            features = features + self.conv_res(previous)
        for layer in self.conv_norm_relus:
            features = layer(features)
        return features, None if classes is None else self.predict(features, classes)

    def layers(self, x: Tensor) -> Tensor:
        """Mask logits (R, K, 2S, 2S) of all classes, without features of a stage before."""
        hidden, _ = self(x)
        return self.predictor(F.relu(self.deconv(hidden)))

    def predict(self, hidden: Tensor, classes: Tensor) -> Tensor:
        """Predict the mask of each region's own class; no other class is computed.

        Args:
            hidden: (R, D, S, S), from `forward`.
            classes: (R,) long.

        Returns:
            (R, 1, 2S, 2S) fp32 logits.
        """
        upsampled = F.relu(self.deconv(hidden))
        if self.predictor.out_channels == 1:
            return self.predictor(upsampled).float()
        weight = self.predictor.weight[classes].flatten(2)  # (R, D, 1)
        bias = self.predictor.bias[classes]  # (R,)
        logits = weight.transpose(1, 2) @ upsampled.flatten(2)  # (R, 1, 2S*2S)
        logits = logits.float() + bias.float()[:, None, None]
        return logits.unflatten(2, upsampled.shape[2:])


class FusedSemanticHead(nn.Module):
    """Semantic segmentation on the sum of all pyramid maps (section 3.2).

    Args:
        in_features: names of the maps, finest first.
        in_channels: C of the maps, and of the embedding.
        fusion_level: index of the map to whose size the others are resized.
        conv_dim: width D.
        num_convs: 3x3 convolutions after the sum.
        num_classes: K.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: int,
        fusion_level: int,
        conv_dim: int,
        num_convs: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.fusion_level = fusion_level
        lateral = [_make_conv(in_channels, conv_dim, 1) for _ in self.in_features]
        self.lateral_convs = nn.ModuleList(lateral)
        self.convs = nn.Sequential(*(_make_conv(conv_dim, conv_dim, 3) for _ in range(num_convs)))
        self.conv_embedding = _make_conv(conv_dim, in_channels, 1)
        self.conv_logits = Conv2d(conv_dim, num_classes, 1)
        nn.init.normal_(self.conv_logits.weight, std=0.01)
        nn.init.zeros_(self.conv_logits.bias)

    @classmethod
    def build(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> FusedSemanticHead:
        """Build the head that `cfg.MODEL.HTC` describes."""
        node = cfg.MODEL.HTC
        return cls(
            in_features=node.SEMANTIC_IN_FEATURES,
            in_channels=input_shape[node.SEMANTIC_IN_FEATURES[0]].channels,
            fusion_level=node.SEMANTIC_FUSION_LEVEL,
            conv_dim=node.SEMANTIC_CONV_DIM,
            num_convs=node.SEMANTIC_NUM_CONVS,
            num_classes=count_semantic_classes(cfg),
        )

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Segment.

        Args:
            features: maps (N, C, H, W) by name.

        Returns:
            (N, K, H, W) logits and (N, C, H, W) features for boxes and masks, both of the fusion
            level's size.
        """
        maps = [features[name] for name in self.in_features]
        size = maps[self.fusion_level].shape[2:]
        laterals = []
        for level, (own, conv) in enumerate(zip(maps, self.lateral_convs, strict=True)):
            if level != self.fusion_level:  # resized in fp32: positions need the precision
                own = F.interpolate(own.float(), size, mode="bilinear", align_corners=True)
            laterals.append(conv(own))
        hidden = self.convs(sum(laterals[1:], laterals[0]))
        return self.conv_logits(hidden), self.conv_embedding(hidden)


def _make_conv(in_channels: int, out_channels: int, side: int) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, side, padding=side // 2, activation=F.relu)
    weight_init.c2_msra_fill(conv)
    return conv
