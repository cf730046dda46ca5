"""Feature pyramids, and levels above P5 that come from P5 (FCOS, section 3.2; YOLACT, section 3).

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from instancezoo.errors import check_choice, check_numbers

UPSAMPLINGS = ("nearest", "bilinear")
# Where the extra levels start: the last map of the pyramid proper.
_TOP_FEATURE = "p5"


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    """Build an FPN, as MODEL.FPN configures it, on a network and under a top block.

    Raises:
        ConfigError: unknown MODEL.FPN.UPSAMPLING.
    """
    node = cfg.MODEL.FPN
    check_choice("MODEL.FPN.UPSAMPLING", node.UPSAMPLING, UPSAMPLINGS)
    kind = BilinearFPN if node.UPSAMPLING == "bilinear" else FPN
    fpn = kind(
        bottom_up=bottom_up,
        in_features=list(node.IN_FEATURES),
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=top_block,
        fuse_type=node.FUSE_TYPE,
    )
    if node.OUTPUT_RELU:
        for conv in fpn.output_convs:
            conv.activation = F.relu
    return fpn


class BilinearFPN(FPN):
    """Detectron2's FPN with a bilinear top-down path to each map's own size.

    Unlike nearest doubling, it needs no image sides that are multiples of the strides.
    """

    @property
    def size_divisibility(self) -> int:
        return 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) image -> name of each level -> its map, finest first."""
        bottom_up = self.bottom_up(x)
        merged: Tensor | None = None
        results: list[Tensor] = []
        # Detectron2 keeps the convolutions coarsest first.
        layers = zip(reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True)
        for name, lateral, output in layers:
            own = lateral(bottom_up[name])
            if merged is not None:
                size = own.shape[2:]
                own = own + F.interpolate(merged, size, mode="bilinear", align_corners=False)
                own = own / 2 if self._fuse_type == "avg" else own
            merged = own
            results.insert(0, output(merged))
        maps = dict(zip(self._out_features, results, strict=False))
        if self.top_block is not None:
            results.extend(self.top_block({**bottom_up, **maps}[self.top_block.in_feature]))
        return dict(zip(self._out_features, results, strict=True))


def build_top_levels(cfg: CfgNode) -> nn.Module | None:
    """Build the levels above P5 that MODEL.FPN.TOP_LEVELS and TOP_RELU configure.

    Raises:
        ConfigError: TOP_LEVELS is not 0, 1 or 2.
    """
    node = cfg.MODEL.FPN
    check_numbers("MODEL.FPN", node, {"TOP_LEVELS": (0, 2)})
    return build_top_block(node.TOP_LEVELS, node.OUT_CHANNELS, relu=node.TOP_RELU)


def build_top_block(num_levels: int, channels: int, *, relu: bool = True) -> nn.Module | None:
    """Build the levels above P5: 3x3 convolutions of stride 2.

    Args:
        num_levels: 0, 1 or 2.
        channels: of P5 and of the new levels.
        relu: if True, a ReLU between the two.

    Returns:
        A top block for Detectron2's `FPN`.

    Raises:
        ValueError: another number of levels.
    """
    if num_levels == 0:
        return None
    if num_levels == 1:
        return LastLevelP6(channels, channels, _TOP_FEATURE)
    if num_levels == 2:
        kind = LastLevelP6P7 if relu else LinearP6P7
        return kind(channels, channels, _TOP_FEATURE)
    raise ValueError(f"{num_levels} levels above P5; there can be 0, 1 or 2")


class LinearP6P7(LastLevelP6P7):
    """Detectron2's P6 and P7 without the ReLU between them."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> maps of a half and a quarter of its sides, rounded up."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


class LastLevelP6(nn.Module):
    """The first of Detectron2's `LastLevelP6P7` alone.

    Args:
        in_channels, out_channels: channels.
        in_feature: the map that the level is made from.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        c2_xavier_fill(self.p6)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> one map (N, C', ceil(H / 2), ceil(W / 2))."""
        return [self.p6(features)]
