"""U-Net (Ronneberger et al., arXiv 1505.04597) as a backbone, with padding and batch norm.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.errors import ConfigError, check_choice
from instancezoo.modeling.towers import NORMS, check_group_norm


@BACKBONE_REGISTRY.register()
class UNetBackbone(Backbone):
    """Halve the image several times, and double it again beside the maps of the way down.

    Each stage is two 3x3 convolutions. The result has one map a stage, "u1" at the image's own
    size, "u2" at half of it, and so on; the coarsest one is the bottom. The way up ends at the
    finest map that is returned.

    Args:
        in_channels: of the images.
        widths: channels of the stages, from the image's size on.
        norm: of all convolutions.
        out_features: names of the maps to return.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        widths: Sequence[int],
        norm: str = "BN",
        out_features: Sequence[str] = ("u1",),
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _build_stage(before, width, norm)
            for before, width in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        # Stages finer than all maps that are returned would never get a gradient.
        self._finest = min(int(name[1:]) for name in out_features) - 1
        for width, below in pairwise(widths[self._finest :]):
            self.up.append(nn.ConvTranspose2d(below, width, kernel_size=2, stride=2))
            self.merge.append(_build_stage(2 * width, width, norm))
        self._widths = list(widths)
        self._out_features = list(out_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.UNET. Raises `ConfigError`."""
        node = cfg.MODEL.UNET
        names = [f"u{index + 1}" for index in range(len(node.WIDTHS))]
        if len(names) < 2 or not node.OUT_FEATURES or not set(node.OUT_FEATURES) <= set(names):
            raise ConfigError(
                f"MODEL.UNET.WIDTHS is {list(node.WIDTHS)} and MODEL.UNET.OUT_FEATURES "
                f"{list(node.OUT_FEATURES)}; there must be 2 or more widths, and one map or more "
                f"of {', '.join(names) or 'u1, u2'}"
            )
        if not all(isinstance(width, int) and width >= 1 for width in node.WIDTHS):
            raise ConfigError(
                f"MODEL.UNET.WIDTHS is {list(node.WIDTHS)}; each must be a whole number, 1 or more"
            )
        check_choice("MODEL.UNET.NORM", node.NORM, NORMS)
        for width in node.WIDTHS:
            check_group_norm(node.NORM, {"MODEL.UNET.WIDTHS": width})
        return {
            "in_channels": input_shape.channels,
            "widths": list(node.WIDTHS),
            "norm": node.NORM,
            "out_features": list(node.OUT_FEATURES),
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the images are multiples of it."""
        return 2 ** (len(self._widths) - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> maps by name."""
        features, skips = images, []
        for index, stage in enumerate(self.down):
            features = stage(F.max_pool2d(features, 2) if index else features)
            skips.append(features)
        maps = {f"u{len(skips)}": features}
        for index in reversed(range(self._finest, len(skips) - 1)):
            step = index - self._finest
            joined = torch.cat([skips[index], self.up[step](features)], dim=1)
            features = self.merge[step](joined)
            maps[f"u{index + 1}"] = features
        return {name: maps[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        shapes = {
            f"u{index + 1}": ShapeSpec(channels=width, stride=2**index)
            for index, width in enumerate(self._widths)
        }
        return {name: shapes[name] for name in self._out_features}


def build_unet_conv(in_channels: int, channels: int, norm: str) -> Conv2d:
    """3x3 convolution, norm, ReLU; the map keeps its size."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def _build_stage(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        build_unet_conv(in_channels, channels, norm), build_unet_conv(channels, channels, norm)
    )
