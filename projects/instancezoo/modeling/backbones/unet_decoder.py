"""The decoder of a U-Net on any encoder, as a backbone whose map has the image's own size.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.errors import ConfigError, check_choice
from instancezoo.modeling.towers import NORMS, check_group_norm

from .timm_fpn import TimmBackbone
from .unet import build_unet_conv

ENCODERS = ("resnet", "timm")


@BACKBONE_REGISTRY.register()
def build_unet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EncoderUNet:
    """Build a U-Net on the encoder MODEL.UNET.ENCODER.

    Args:
        cfg: reads MODEL.UNET, and of the encoder MODEL.RESNETS, or MODEL.TIMM and
            MODEL.BACKBONE.FREEZE_AT.
        input_shape: its `channels` are the network's input channels.

    Raises:
        ConfigError: an unknown encoder or norm, too few or bad widths, maps with gaps.
        ZooError: see `TimmBackbone`.
    """
    node = cfg.MODEL.UNET
    check_choice("MODEL.UNET.ENCODER", node.ENCODER, ENCODERS)
    check_choice("MODEL.UNET.NORM", node.NORM, NORMS)
    encoder: Backbone
    if node.ENCODER == "resnet":
        encoder, maps = build_resnet_backbone(cfg, input_shape), "MODEL.RESNETS.OUT_FEATURES"
    else:
        encoder, maps = _build_timm_encoder(cfg, input_shape), "MODEL.TIMM.NAME"
    strides = sorted(shape.stride or 1 for shape in encoder.output_shape().values())
    if any(b != 2 * a for a, b in pairwise(strides)) or strides[0].bit_count() != 1:
        raise ConfigError(
            f"{maps}: its maps have strides {strides}; they must be powers of two, each twice the "
            "one before"
        )
    widths, count = list(node.DECODER_WIDTHS), strides[-1].bit_length() - 1
    if len(widths) < count:
        raise ConfigError(
            f"MODEL.UNET.DECODER_WIDTHS has {len(widths)} widths; the coarsest map of the encoder "
            f"has stride {strides[-1]}, from which {count} doublings lead to the image's size"
        )
    if not all(isinstance(width, int) and width >= 1 for width in widths):
        raise ConfigError(
            f"MODEL.UNET.DECODER_WIDTHS is {widths}; each must be a whole number, 1 or more"
        )
    for width in widths[:count]:
        check_group_norm(node.NORM, {"MODEL.UNET.DECODER_WIDTHS": width})
    return EncoderUNet(encoder, widths=widths[:count], norm=node.NORM)


def _build_timm_encoder(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        out_features=None,
        weights=cfg.MODEL.TIMM.WEIGHTS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels or 3,
    )


class EncoderUNet(Backbone):
    """Double the encoder's coarsest map up to the image's size, beside the maps on the way.

    Each step is bilinear doubling (`align_corners=False`), a 3x3 convolution, the encoder's map of
    the same size if there is one, and a second 3x3 convolution. The result is named "u1".

    Args:
        bottom_up: the encoder; its strides are powers of two, each twice the one before.
        widths: channels of the steps, from the image's size on.
        norm: of all convolutions.
    """

    def __init__(self, bottom_up: Backbone, *, widths: Sequence[int], norm: str = "BN") -> None:
        super().__init__()
        self.bottom_up = bottom_up
        shapes = bottom_up.output_shape()
        # Coarsest first, as all lists here.
        self._names = sorted(shapes, key=lambda name: -(shapes[name].stride or 1))
        channels = {shape.stride: shape.channels or 1 for shape in shapes.values()}
        self._coarsest = shapes[self._names[0]].stride or 1
        self.expand, self.merge = nn.ModuleList(), nn.ModuleList()
        before, stride = channels[self._coarsest], self._coarsest
        for width in reversed(widths):
            stride //= 2
            self.expand.append(build_unet_conv(before, width, norm))
            joined = width + channels.get(stride, 0)
            self.merge.append(build_unet_conv(joined, width, norm))
            before = width
        self._out_channels = before

    @property
    def size_divisibility(self) -> int:
        """Sides of the images are multiples of it."""
        return self._coarsest

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> `{"u1": (N, C', H, W)}`."""
        maps = self.bottom_up(images)
        features, skips = maps[self._names[0]], [maps[name] for name in self._names[1:]]
        for expand, merge in zip(self.expand, self.merge, strict=True):
            doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = expand(doubled)
            if skips:
                features = torch.cat([skips.pop(0), features], dim=1)
            features = merge(features)
        return {"u1": features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the map."""
        return {"u1": ShapeSpec(channels=self._out_channels, stride=1)}
