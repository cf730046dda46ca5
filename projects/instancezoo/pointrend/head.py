"""The networks of PointRend (section 3 and appendix A): modules only.

Legend: R regions, P points, C channels of the fine features, K channels of the coarse logits,
S grid side.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.utils.registry import Registry
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

POINT_HEAD_REGISTRY: Any = Registry("POINT_HEAD")
POINT_HEAD_REGISTRY.__doc__ = """
Registry of point heads, built by `obj(cfg, ShapeSpec(channels=C), **overrides)`; they take what
`StandardPointHead.forward` takes. It is not the registry of `detectron2.projects.point_rend`.
"""

_PREDICTION_STD = 0.001


class CoarseMaskHead(nn.Module):
    """A coarse mask of every class, from a small grid of features through fully connected layers.

    Args:
        in_channels: channels of the region's features.
        conv_dim: channels of the convolutions; a 1x1 convolution reduces more input channels first.
        pooler_side: side of the region's features, halved by a 2x2 convolution.
        fc_dim, num_fc: width and number of the fully connected layers.
        num_classes: K.
        side: S of the result.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        conv_dim: int,
        pooler_side: int,
        fc_dim: int,
        num_fc: int,
        num_classes: int,
        side: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.side = side
        self.reduce_channel_dim_conv: nn.Module = nn.Identity()
        if in_channels > conv_dim:
            self.reduce_channel_dim_conv = _make_conv(in_channels, conv_dim, kernel_size=1)
            in_channels = conv_dim
        self.reduce_spatial_dim_conv = _make_conv(in_channels, conv_dim, kernel_size=2, stride=2)
        width = conv_dim * (pooler_side // 2) ** 2
        self.fc_names = [f"fc{index + 1}" for index in range(num_fc)]
        for name in self.fc_names:
            layer = nn.Linear(width, fc_dim)
            weight_init.c2_xavier_fill(layer)
            self.add_module(name, layer)
            width = fc_dim
        self.prediction = nn.Linear(width, num_classes * side * side)
        _init_prediction(self.prediction)

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, pooler side, pooler side) -> logits (R, K, S, S) fp32."""
        features = self.reduce_spatial_dim_conv(self.reduce_channel_dim_conv(features)).flatten(1)
        for name in self.fc_names:
            features = F.relu(self.get_submodule(name)(features))
        logits = self.prediction(features).float()
        return logits.unflatten(1, (self.num_classes, self.side, self.side))


@POINT_HEAD_REGISTRY.register()
class StandardPointHead(nn.Module):
    """The MLP that all points share; the coarse logits join the input of its layers.

    Args:
        fine_channels: C.
        coarse_channels: K.
        num_outputs: K, or 1 for a mask that does not depend on the class.
        fc_dim, num_fc: width and number of the hidden layers.
        coarse_each_layer: the coarse logits join every layer's input, not only the first one's.
        start_from_coarse: the untrained head nearly returns the coarse logits, so that it learns
            corrections only. Needs K outputs; has no effect without `coarse_each_layer`.
    """

    @configurable
    def __init__(
        self,
        *,
        fine_channels: int,
        coarse_channels: int,
        num_outputs: int,
        fc_dim: int = 256,
        num_fc: int = 3,
        coarse_each_layer: bool = True,
        start_from_coarse: bool = False,
    ) -> None:
        super().__init__()
        self.coarse_each_layer = coarse_each_layer
        self.is_class_agnostic = num_outputs == 1
        width = fine_channels + coarse_channels
        self.fc_names = [f"fc{index + 1}" for index in range(num_fc)]
        for name in self.fc_names:
            layer = nn.Conv1d(width, fc_dim, kernel_size=1)  # the published weights' shape
            weight_init.c2_msra_fill(layer)
            self.add_module(name, layer)
            width = fc_dim + (coarse_channels if coarse_each_layer else 0)
        self.predictor = nn.Conv1d(width, num_outputs, kernel_size=1)
        _init_prediction(self.predictor)
        if start_from_coarse and coarse_each_layer:
            with torch.no_grad():
                self.predictor.weight[:, -coarse_channels:, 0] += torch.eye(coarse_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.POINT_HEAD
        return {
            "fine_channels": input_shape.channels,
            "coarse_channels": node.NUM_CLASSES,
            "num_outputs": 1 if node.CLS_AGNOSTIC_MASK else node.NUM_CLASSES,
            "fc_dim": node.FC_DIM,
            "num_fc": node.NUM_FC,
            "coarse_each_layer": node.COARSE_PRED_EACH_LAYER,
        }

    def forward(self, fine: Tensor, coarse: Tensor, classes: Tensor) -> Tensor:
        """Predict each region's own class at its points; no other class is computed.

        Args:
            fine: (R, P, C) features at the points.
            coarse: (R, P, K) coarse logits at the points.
            classes: (R,) long.

        Returns:
            (R, P) fp32 logits.
        """
        features = torch.cat([fine, coarse], dim=2)
        for name in self.fc_names:
            layer: Any = self.get_submodule(name)
            features = F.relu(F.linear(features, layer.weight[:, :, 0], layer.bias))
            if self.coarse_each_layer:
                features = torch.cat([features, coarse.to(features.dtype)], dim=2)
        rows = torch.zeros_like(classes) if self.is_class_agnostic else classes
        weight, bias = self.predictor.weight[rows], self.predictor.bias[rows]  # type: ignore[index]
        return (features @ weight).float()[:, :, 0] + bias.float()[:, None]


def build_point_head(cfg: CfgNode, input_shape: ShapeSpec, **overrides: Any) -> nn.Module:
    """Build the head that `cfg.MODEL.POINT_HEAD.NAME` names; `overrides` go to its constructor."""
    return POINT_HEAD_REGISTRY.get(cfg.MODEL.POINT_HEAD.NAME)(cfg, input_shape, **overrides)


def _make_conv(in_channels: int, out_channels: int, **options: int) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, activation=F.relu, **options)
    weight_init.c2_msra_fill(conv)
    return conv


def _init_prediction(layer: nn.Module) -> None:
    nn.init.normal_(layer.weight, std=_PREDICTION_STD)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
