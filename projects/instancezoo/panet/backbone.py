"""Bottom-up path augmentation (Liu et al., arXiv 1803.01534, section 3.1).

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.errors import check_choice
from instancezoo.modeling.backbones.deform_resnet import build_deform_resnet
from instancezoo.modeling.backbones.timm_fpn import build_timm_bottom_up
from instancezoo.modeling.fpn import build_top_levels
from instancezoo.modeling.towers import check_group_norm

from .config import TOP_BLOCKS


class PANetFPN(FPN):
    """An FPN whose maps are passed on once more, from fine to coarse.

    N2 is P2. Each coarser map is a convolution of its P and of the finer N at half the size: fine
    details reach the coarsest map by a few layers instead of the whole backbone.

    Args:
        top_block: (N, C, H, W), the coarsest map -> list of the levels above it; None for none. It
            has `num_levels`, as those of Detectron2.
        norm: of all convolutions of FPN and path.
        kwargs: those of `FPN`.
    """

    def __init__(self, *, top_block: nn.Module | None, norm: str = "", **kwargs: Any) -> None:
        # The FPN's own top block would stand on P5.
        super().__init__(norm=norm, top_block=None, **kwargs)
        shapes = super().output_shape()
        *finer, (last_name, last) = shapes.items()
        self.path_down = nn.ModuleList(_build_conv(last.channels, norm, 2) for _ in finer)
        self.path_output = nn.ModuleList(_build_conv(last.channels, norm, 1) for _ in finer)
        self.path_top = top_block
        num_top = 0 if top_block is None else int(getattr(top_block, "num_levels", 1))
        number = int(last_name.removeprefix("p"))
        self._top_shapes = {
            f"p{number + k}": ShapeSpec(channels=last.channels, stride=(last.stride or 1) * 2**k)
            for k in range(1, num_top + 1)
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> N2, N3, ... under the names "p2", "p3", ... of an FPN."""
        maps = super().forward(images)
        (name, current), *coarser = maps.items()
        outputs = {name: current}
        for (name, lateral), down, output in zip(
            coarser, self.path_down, self.path_output, strict=True
        ):
            current = output(down(current) + lateral)
            outputs[name] = current
        if self.path_top is not None:
            outputs.update(zip(self._top_shapes, self.path_top(current), strict=True))
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return {**super().output_shape(), **self._top_shapes}


def build_panet_fpn(cfg: CfgNode, bottom_up: Backbone) -> PANetFPN:
    """Build FPN and bottom-up path on a network, as MODEL.FPN and MODEL.PANET configure them.

    Raises:
        ConfigError: an unknown TOP_BLOCK, channels that the norm cannot divide, or an UPSAMPLING
            other than "nearest".
    """
    node, top_block = cfg.MODEL.FPN, cfg.MODEL.PANET.TOP_BLOCK
    check_choice("MODEL.PANET.TOP_BLOCK", top_block, TOP_BLOCKS)
    check_choice("MODEL.FPN.UPSAMPLING", node.UPSAMPLING, ("nearest",))
    check_group_norm(node.NORM, {"MODEL.FPN.OUT_CHANNELS": node.OUT_CHANNELS})
    top = build_top_levels(cfg) if top_block == "convs" else LastLevelMaxPool()
    fpn = PANetFPN(
        bottom_up=bottom_up,
        in_features=list(node.IN_FEATURES),
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        fuse_type=node.FUSE_TYPE,
        top_block=top,
    )
    if node.OUTPUT_RELU:
        for conv in fpn.output_convs:
            conv.activation = F.relu
    return fpn


@BACKBONE_REGISTRY.register()
def build_resnet_panet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PANetFPN:
    """Build a ResNet, deformable where MODEL.RESNETS.DEFORM_ON_PER_STAGE says so, with the path.

    Args:
        cfg: reads what `build_deform_resnet_fpn_backbone` reads, and MODEL.PANET.TOP_BLOCK.
        input_shape: its `channels` are the network's input channels.
    """
    return build_panet_fpn(cfg, build_deform_resnet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_panet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PANetFPN:
    """Build the network MODEL.TIMM.NAME with the path.

    Args:
        cfg: reads what `build_timm_fpn_backbone` reads, and MODEL.PANET.TOP_BLOCK.
        input_shape: its `channels` are the network's input channels.
    """
    return build_panet_fpn(cfg, build_timm_bottom_up(cfg, input_shape))


def _build_conv(channels: int, norm: str, stride: int) -> Conv2d:
    # The published convolutions have biases although a norm follows.
    conv = Conv2d(
        channels,
        channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        norm=get_norm(norm, channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(conv)
    return conv
