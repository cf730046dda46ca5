"""Darknet-53 (Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.4) under an FPN.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from instancezoo.modeling.fpn import build_fpn, build_top_levels

NUM_BLOCKS = (1, 2, 8, 8, 4)
_STEM_CHANNELS = 32
_LEAK = 0.1


@BACKBONE_REGISTRY.register()
def build_darknet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Darknet-53 with an FPN and convolved levels above P5.

    Args:
        cfg: reads MODEL.FPN, MODEL.RESNETS.NORM and MODEL.BACKBONE.FREEZE_AT.
        input_shape: its `channels` are the network's input channels.

    Raises:
        ConfigError: MODEL.FPN.TOP_LEVELS is not 0, 1 or 2.
    """
    bottom_up = Darknet(
        out_features=list(cfg.MODEL.FPN.IN_FEATURES),
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels or 3,
    )
    return build_fpn(cfg, bottom_up, build_top_levels(cfg))


class Darknet(Backbone):
    """Darknet-53 without its classifier; outputs have Detectron2's names by their stride.

    Stages that no requested output needs are left out.

    Args:
        out_features: any of res1 (stride 2) to res5 (stride 32).
        norm: a name Detectron2's `get_norm` knows.
        freeze_at: 0 trains all; 1 freezes the stem; k >= 2 also everything up to `res{k}`.
        in_channels: channels of the input image.

    Raises:
        ValueError: an unknown output.
    """

    def __init__(
        self,
        *,
        out_features: Sequence[str],
        norm: str = "BN",
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        names = [f"res{index + 1}" for index in range(len(NUM_BLOCKS))]
        if not out_features or not set(out_features) <= set(names):
            raise ValueError(f"Darknet has {', '.join(names)}; not all of {list(out_features)}")
        self.stem = _build_conv(in_channels, _STEM_CHANNELS, norm=norm)
        self._out_features = list(out_features)
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        channels, frozen = _STEM_CHANNELS, [self.stem]
        for index in range(max(names.index(name) for name in out_features) + 1):
            name, stride = names[index], 2 ** (index + 1)
            blocks = [_Residual(2 * channels, norm) for _ in range(NUM_BLOCKS[index])]
            down = _build_conv(channels, 2 * channels, stride=2, norm=norm)
            stage = nn.Sequential(down, *blocks)
            self.add_module(name, stage)
            channels *= 2
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = stride
            if index < freeze_at:
                frozen.append(stage)
        self._frozen = frozen if freeze_at else []
        for stage in self._frozen:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> name of each requested output -> its map."""
        features, outputs = self.stem(images), {}
        for name in self._out_feature_channels:
            features = getattr(self, name)(features)
            if name in self._out_features:
                outputs[name] = features
        return outputs

    def train(self, mode: bool = True) -> Darknet:
        """Switch to training or evaluation; norms of frozen stages stay in evaluation."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self


class _Residual(nn.Module):
    """1x1 convolution to half the channels, 3x3 convolution, identity; nothing after the sum."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _build_conv(channels, channels // 2, kernel_size=1, norm=norm)
        self.conv2 = _build_conv(channels // 2, channels, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return features + self.conv2(self.conv1(features))


def _build_conv(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, norm: str
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=not norm
    )
    nn.init.kaiming_normal_(conv.weight, a=_LEAK)
    parts = {"conv": conv, "norm": get_norm(norm, out_channels), "relu": nn.LeakyReLU(_LEAK, True)}
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if part))
