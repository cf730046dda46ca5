"""ResNet with FPN and deformable 3x3 convolutions that need no compiled Detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone

from instancezoo.layers.deform_conv import DeformConv
from instancezoo.modeling.fpn import build_fpn, build_top_levels


@BACKBONE_REGISTRY.register()
def build_deform_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a bottleneck ResNet with an FPN and a max-pooled last level.

    Args:
        cfg: reads what `build_resnet_fpn_backbone` reads; in the stages that
            MODEL.RESNETS.DEFORM_ON_PER_STAGE names, 3x3 convolutions of every DEFORM_INTERVAL-th
            block are torchvision's deformable ones, of version 2 if DEFORM_MODULATED, with a bias
            if DEFORM_BIAS.
        input_shape: its `channels` are the network's input channels.
    """
    return build_fpn(cfg, build_deform_resnet(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_top_levels_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same ResNet with an FPN and convolved levels above P5.

    In Detectron2's RetinaNet pyramid, P6 comes from C5 instead.

    Args:
        cfg, input_shape: as of `build_deform_resnet_fpn_backbone`; also reads
            MODEL.FPN.TOP_LEVELS, the number of levels above P5, and TOP_RELU.

    Returns:
        FPN with outputs p3, p4, p5 and up to p7 for MODEL.FPN.IN_FEATURES res3, res4, res5.

    Raises:
        ConfigError: TOP_LEVELS is not 0, 1 or 2.
    """
    return build_fpn(cfg, build_deform_resnet(cfg, input_shape), build_top_levels(cfg))


def build_deform_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of `build_deform_resnet_fpn_backbone`, without an FPN."""
    # Detectron2's own deformable block needs its C++ part.
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    bottom_up = build_resnet_backbone(plain, input_shape)
    # Stages from res2 up to the last that MODEL.RESNETS.OUT_FEATURES needs are built.
    node = cfg.MODEL.RESNETS
    for stage, is_deformable in zip(bottom_up.stages, node.DEFORM_ON_PER_STAGE, strict=False):
        for block in stage[:: node.DEFORM_INTERVAL] if is_deformable else ():
            block.conv2 = make_deformable(
                block.conv2, modulated=node.DEFORM_MODULATED, bias=node.DEFORM_BIAS
            )
    return bottom_up


def make_deformable(conv: Conv2d, *, modulated: bool, bias: bool = False) -> DeformConv:
    """Make a deformable convolution with the weight and the norm of a plain one.

    Args:
        conv: the plain one.
        modulated: see `DeformConv`.
        bias: if True, the deformable one has a bias, 0 at first, even if the plain one has none.
    """
    deformable = DeformConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        stride=conv.stride[0],
        padding=conv.padding[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        bias=bias or conv.bias is not None,
        modulated=modulated,
        norm=conv.norm,
        activation=conv.activation,
    )
    deformable.weight = conv.weight
    if conv.bias is not None:
        deformable.bias = conv.bias
    return deformable
