"""PANet's box and mask heads: modules only (sections 3.2 and 3.3).

Legend: L levels, R regions, C channels, K classes, S side of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from .config import check_panet_config

_FUSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"max": torch.maximum, "sum": torch.add}
_FC_STD = 0.01


class LevelFusion(nn.ModuleList):
    """Adaptive feature pooling (section 3.2): a layer for each level, then max or sum over levels.

    Args:
        layers: L modules, one for each level's features; the results have one shape.
        fuse: "max" or "sum".
    """

    def __init__(self, layers: Iterable[nn.Module], fuse: str) -> None:
        super().__init__(layers)
        self.fuse = fuse

    def forward(self, features: list[Tensor]) -> Tensor:
        """L tensors (R, C, side, side) -> (R, C', side, side), or (R, C') of flat layers."""
        # One convolution with L groups, and one maximum of a stack, take longer (README).
        results = (layer(level) for layer, level in zip(self, features, strict=True))
        return reduce(_FUSIONS[self.fuse], results)


class FullyConnected(nn.Linear):
    """A fully connected layer of flattened features, a norm, ReLU.

    Args:
        in_features, out_features: widths.
        norm: a name Detectron2's `get_norm` knows; "" for none.
    """

    def __init__(self, in_features: int, out_features: int, norm: str = "") -> None:
        super().__init__(in_features, out_features)
        self.norm = get_norm(norm, out_features)
        weight_init.c2_xavier_fill(self)

    def forward(self, features: Tensor) -> Tensor:
        """(R, ...) of `in_features` numbers -> (R, `out_features`)."""
        features = super().forward(features.flatten(1))
        if self.norm is not None:
            features = self.norm(features[:, :, None, None]).flatten(1)  # norms take maps
        return F.relu(features)


@ROI_BOX_HEAD_REGISTRY.register()
class PANetConvFCHead(nn.Sequential):
    """Convolutions, then fully connected layers; the first layer is one for each level.

    With convolutions, the norm follows these only; without, the fully connected layers.

    Args:
        input_shape: channels, height and width of one level's features.
        num_levels: L.
        num_conv, conv_dim: number and channels of the convolutions.
        num_fc, fc_dim: number and width of the fully connected layers.
        norm: a name Detectron2's `get_norm` knows.
        fuse: "max" or "sum".
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_levels: int,
        num_conv: int,
        conv_dim: int,
        num_fc: int,
        fc_dim: int,
        norm: str = "",
        fuse: str = "max",
    ) -> None:
        super().__init__()
        channels, fc_norm = input_shape.channels or 1, "" if num_conv else norm
        height, width = input_shape.height, input_shape.width
        for index in range(num_conv + num_fc):
            make: Callable[[], nn.Module]
            if index < num_conv:
                name, make = f"conv{index + 1}", partial(_build_conv, channels, conv_dim, norm)
                channels = conv_dim
            else:
                size = channels * (height or 1) * (width or 1)
                name = f"fc{index - num_conv + 1}"
                make = partial(FullyConnected, size, fc_dim, fc_norm)
                channels, height, width = fc_dim, None, None
            layers = (make() for _ in range(num_levels))
            self.add_module(name, make() if index else LevelFusion(layers, fuse))
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        check_panet_config(cfg)
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "num_levels": len(cfg.MODEL.ROI_HEADS.IN_FEATURES),
            "num_conv": node.NUM_CONV,
            "conv_dim": node.CONV_DIM,
            "num_fc": node.NUM_FC,
            "fc_dim": node.FC_DIM,
            "norm": node.NORM,
            "fuse": cfg.MODEL.PANET.FUSE,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of a region's features after the head."""
        return self._output_shape


@ROI_MASK_HEAD_REGISTRY.register()
class PANetFusionMaskHead(BaseMaskRCNNHead):
    """Fully-connected fusion (section 3.3): a convolutional mask of each class plus one for all.

    Args:
        input_shape: channels, height and width of one level's features.
        num_levels: L.
        num_classes: K, or 1 for a mask that does not depend on the class.
        num_conv: convolutions up to the deconvolution: that of each level, those shared by both
            branches, one of the convolutional branch.
        conv_dim: their channels.
        norm: a name Detectron2's `get_norm` knows.
        fuse: "max" or "sum".
        fc_fusion: with the fully connected branch.
        kwargs: those of Detectron2's mask heads.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_levels: int,
        num_classes: int,
        num_conv: int,
        conv_dim: int,
        norm: str = "",
        fuse: str = "max",
        fc_fusion: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        channels, side = input_shape.channels or 1, input_shape.height or 1
        levels = (_build_conv(channels, conv_dim, norm) for _ in range(num_levels))
        self.fusion = LevelFusion(levels, fuse)
        self.shared = nn.Sequential(
            *(_build_conv(conv_dim, conv_dim, norm) for _ in range(num_conv - 2))
        )
        self.conv = _build_conv(conv_dim, conv_dim, norm)
        self.deconv = nn.ConvTranspose2d(conv_dim, conv_dim, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dim, num_classes, kernel_size=1)
        for layer in (self.deconv, self.predictor):
            weight_init.c2_msra_fill(layer)
        self.fc_branch = None
        if fc_fusion:
            fc = nn.Linear(conv_dim // 2 * side**2, (2 * side) ** 2)
            nn.init.normal_(fc.weight, std=_FC_STD)
            nn.init.zeros_(fc.bias)
            self.fc_branch = nn.Sequential(
                _build_conv(conv_dim, conv_dim, norm),
                _build_conv(conv_dim, conv_dim // 2, norm),
                nn.Flatten(),
                fc,
                nn.ReLU(),  # not in the paper; the published weights need it
                nn.Unflatten(1, (1, 2 * side, 2 * side)),
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        check_panet_config(cfg)
        node = cfg.MODEL.ROI_MASK_HEAD
        num_classes = 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_levels": len(cfg.MODEL.ROI_HEADS.IN_FEATURES),
            "num_classes": num_classes,
            "num_conv": node.NUM_CONV,
            "conv_dim": node.CONV_DIM,
            "norm": node.NORM,
            "fuse": cfg.MODEL.PANET.FUSE,
            "fc_fusion": cfg.MODEL.PANET.FC_FUSION,
        }

    def layers(self, features: list[Tensor]) -> Tensor:
        """L levels' features (R, C, S / 2, S / 2) -> logits (R, K, S, S)."""
        shared = self.shared(self.fusion(features))
        logits: Tensor = self.predictor(F.relu(self.deconv(self.conv(shared))))
        if self.fc_branch is not None:
            logits = logits + self.fc_branch(shared)  # (R, 1, S, S), the same for all classes
        return logits


def _build_conv(in_channels: int, channels: int, norm: str) -> Conv2d:
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
