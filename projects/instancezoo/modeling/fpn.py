"""FPNs over ResNets with deformable stages; levels above P5 come from P5 (FCOS, section 3.2).

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from instancezoo.errors import check_numbers
from instancezoo.modeling.backbones.deform_resnet import build_deform_resnet

# Where the extra levels start: the last map of the pyramid proper.
_TOP_FEATURE = "p5"


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_top_levels_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet, deformable stages included, with an FPN and convolved levels above P5.

    Detectron2's RetinaNet pyramid differs in one thing: its P6 comes from C5.

    Args:
        cfg: reads what Detectron2's `build_resnet_fpn_backbone` reads, and MODEL.FPN.TOP_LEVELS,
            the number of levels above P5.
        input_shape: its `channels` are the network's input channels.

    Returns:
        FPN with outputs p3, p4, p5 and up to p7 for MODEL.FPN.IN_FEATURES res3, res4, res5.

    Raises:
        ConfigError: TOP_LEVELS is not 0, 1 or 2.
    """
    check_numbers("MODEL.FPN", cfg.MODEL.FPN, {"TOP_LEVELS": (0, 2)})
    top_block = build_top_block(cfg.MODEL.FPN.TOP_LEVELS, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_fpn(cfg, build_deform_resnet(cfg, input_shape), top_block)


@BACKBONE_REGISTRY.register()
def build_deform_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet, deformable stages included, with an FPN and a max-pooled last level.

    Args:
        cfg: reads what Detectron2's `build_resnet_fpn_backbone` reads.
        input_shape: its `channels` are the network's input channels.
    """
    return build_fpn(cfg, build_deform_resnet(cfg, input_shape), LastLevelMaxPool())


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    """Build Detectron2's FPN over a backbone.

    Args:
        cfg: reads IN_FEATURES, OUT_CHANNELS, NORM and FUSE_TYPE of MODEL.FPN.
        bottom_up: has the maps of IN_FEATURES.
        top_block: makes the levels above the last map; None for none.
    """
    node = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=node.IN_FEATURES,
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
