"""Feature pyramids, and levels above P5 that come from P5 (FCOS, section 3.2).

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

# Where the extra levels start: the last map of the pyramid proper.
_TOP_FEATURE = "p5"


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    """Build Detectron2's FPN, as MODEL.FPN configures it, on a network and under a top block."""
    node = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=list(node.IN_FEATURES),
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=top_block,
        fuse_type=node.FUSE_TYPE,
    )


def build_top_block(num_levels: int, channels: int) -> nn.Module | None:
    """Build the levels above P5: 3x3 convolutions of stride 2, a ReLU between the two.

    Args:
        num_levels: 0, 1 or 2.
        channels: of P5 and of the new levels.

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
        return LastLevelP6P7(channels, channels, _TOP_FEATURE)
    raise ValueError(f"{num_levels} levels above P5; there can be 0, 1 or 2")


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
