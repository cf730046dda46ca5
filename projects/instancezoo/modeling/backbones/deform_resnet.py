"""ResNet with deformable 3x3 convolutions that need no compiled Detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone

from instancezoo.layers.deform_conv import DeformConv


def build_deform_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a bottleneck ResNet.

    Args:
        cfg: reads what Detectron2's `build_resnet_backbone` reads; in the stages that
            MODEL.RESNETS.DEFORM_ON_PER_STAGE names, 3x3 convolutions are torchvision's deformable
            ones, of version 2 if MODEL.RESNETS.DEFORM_MODULATED.
        input_shape: its `channels` are the network's input channels.
    """
    # Detectron2's own deformable block cannot be made where its C++ part is missing.
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    bottom_up = build_resnet_backbone(plain, input_shape)
    # Of the stages res2 to res5 only those are built that MODEL.RESNETS.OUT_FEATURES needs.
    deformable = zip(bottom_up.stages, cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE, strict=False)
    for blocks in (stage for stage, is_deformable in deformable if is_deformable):
        for block in blocks:
            block.conv2 = make_deformable(block.conv2, cfg.MODEL.RESNETS.DEFORM_MODULATED)
    return bottom_up


def make_deformable(conv: Conv2d, modulated: bool) -> DeformConv:
    """Make a deformable convolution with the weight and the norm of a plain one."""
    deformable = DeformConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        stride=conv.stride[0],
        padding=conv.padding[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        bias=conv.bias is not None,
        modulated=modulated,
        norm=conv.norm,
        activation=conv.activation,
    )
    deformable.weight = conv.weight
    deformable.bias = conv.bias
    return deformable
