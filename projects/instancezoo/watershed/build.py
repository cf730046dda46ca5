"""Builds the parts of the model from a config."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from instancezoo.modeling.grouping import read_group_arguments

from .config import check_dwt_config
from .cut import CutSettings
from .head import WatershedHead
from .networks import SIZE_DIVISIBILITY, DirectionNet, EnergyNet
from .semantics import ClassChannels, ImageBackbone, SemanticBranch, SemanticFiles


def read_arguments(cfg: CfgNode, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `DeepWatershed`, but those of its training.

    Args:
        cfg: the whole config.
        arguments: those that all dense methods share.

    Raises:
        ConfigError: a value that the method cannot work with.
    """
    node = cfg.MODEL.DWT
    backbone = arguments["backbone"]
    shapes = backbone.output_shape()
    check_dwt_config(cfg, shapes)
    in_features = list(shapes) if isinstance(backbone, ImageBackbone) else list(node.IN_FEATURES)
    arguments = read_group_arguments(arguments, node, in_features)
    return {
        **arguments,
        "size_divisibility": max(SIZE_DIVISIBILITY, arguments["size_divisibility"]),
        "head": _build_head(node, len(cfg.MODEL.PIXEL_MEAN), shapes),
        "stride": 1,
        "cut": CutSettings(
            levels=_repeat(node.CUT_LEVELS, node.NUM_CLASSES),
            min_sizes=_repeat(node.MIN_SIZES, node.NUM_CLASSES),
            paint_order=tuple(node.PAINT_ORDER or range(node.NUM_CLASSES)),
            hole_area=node.HOLE_AREA,
            extra_growth=node.DILATE_EXTRA,
        ),
    }


def _build_head(node: CfgNode, image_channels: int, shapes: dict[str, ShapeSpec]) -> WatershedHead:
    codes = [*node.CLASS_CODES, node.BACKGROUND_CODE] if node.CLASS_CODES else []
    channels = ClassChannels(num_classes=node.NUM_CLASSES, codes=codes, dim=node.CLASS_DIM)
    return WatershedHead(
        semantics=_build_semantics(node, shapes),
        class_channels=channels,
        direction_net=DirectionNet(
            in_channels=image_channels + channels.dim,
            width=node.WIDTH,
            norm=node.NORM,
            branch_stds=node.BRANCH_STDS,
        ),
        energy_net=EnergyNet(
            num_levels=len(node.EDGES), width=node.WIDTH, norm=node.NORM, dropout=node.DROPOUT
        ),
    )


def _build_semantics(node: CfgNode, shapes: dict[str, ShapeSpec]) -> SemanticBranch | SemanticFiles:
    if node.SEMANTICS == "maps":
        return SemanticFiles(labels=node.SEMANTIC_LABELS or range(node.NUM_CLASSES))
    branch = SemSegFPNHead(
        {name: shapes[name] for name in node.IN_FEATURES},
        num_classes=node.NUM_CLASSES + 1,
        conv_dims=node.SEM_CONVS_DIM,
        common_stride=node.SEM_STRIDE,
        norm=node.SEM_NORM,
    )
    return SemanticBranch(in_features=node.IN_FEATURES, branch=branch, foreground_thresh=node.T_FG)


def _repeat(values: list[int], length: int) -> tuple[int, ...]:
    return tuple(values) * length if len(values) == 1 else tuple(values)
