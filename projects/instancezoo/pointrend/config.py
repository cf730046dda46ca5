"""Config keys of PointRend, named as in the official project so that its YAML files load."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers

from .head import POINT_HEAD_REGISTRY

MASK_HEAD = "PointRendMaskHeadBatched"
# What the official files call the mask head; those of 2020 called the coarse part by its name.
OFFICIAL_MASK_HEADS = ("PointRendMaskHead", "CoarseMaskHead")
# The files of 2020 had ROI heads of their own, which handed whole maps to the mask head.
OFFICIAL_ROI_HEADS = "PointRendROIHeads"
_ROI_FEATURES = "MODEL.ROI_HEADS.IN_FEATURES"
_POINT_LIMITS = {
    "TRAIN_NUM_POINTS": (1, inf),
    "OVERSAMPLE_RATIO": (1, inf),
    "IMPORTANCE_SAMPLE_RATIO": (0, 1),
    "SUBDIVISION_STEPS": (0, inf),
    "SUBDIVISION_NUM_POINTS": (1, inf),
}


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.POINT_HEAD`, and PointRend's keys to `cfg.MODEL.ROI_MASK_HEAD`."""
    coarse = cfg.MODEL.ROI_MASK_HEAD
    # Maps that the coarse head reads, for boxes of all sizes.
    coarse.IN_FEATURES = ("p2",)
    coarse.FC_DIM = 1024
    coarse.NUM_FC = 2
    # Side of the coarse mask, from which subdivision starts.
    coarse.OUTPUT_SIDE_RESOLUTION = 7
    # Without it the coarse mask is the result.
    coarse.POINT_HEAD_ON = False

    cfg.MODEL.POINT_HEAD = type(cfg)()  # a config merges only with nodes of its own class
    point = cfg.MODEL.POINT_HEAD
    point.NAME = "StandardPointHead"
    # The same as ROI_HEADS.NUM_CLASSES: the classes of the coarse logits it takes.
    point.NUM_CLASSES = 80
    point.IN_FEATURES = ("p2",)
    # N of training
    point.TRAIN_NUM_POINTS = 196
    # k: kN points are drawn,
    point.OVERSAMPLE_RATIO = 3
    # beta: of which the beta * N most uncertain are kept; the rest of N is drawn anew.
    point.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Doublings of the coarse mask's side, and points evaluated at each.
    point.SUBDIVISION_STEPS = 5
    point.SUBDIVISION_NUM_POINTS = 784
    point.FC_DIM = 256
    point.NUM_FC = 3
    # One output for all classes; the coarse mask keeps one for each.
    point.CLS_AGNOSTIC_MASK = False
    # The coarse logits join the input of every layer, not only the first one's.
    point.COARSE_PRED_EACH_LAYER = True


def translate_official_names(cfg: CfgNode) -> None:
    """Put our names in place of the official project's, in place.

    Names are translated in the config and not registered twice: both packages can then be imported
    in one process, in either order.
    """
    if cfg.MODEL.ROI_HEADS.NAME == OFFICIAL_ROI_HEADS:
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    if cfg.MODEL.ROI_MASK_HEAD.NAME in OFFICIAL_MASK_HEADS:
        cfg.MODEL.ROI_MASK_HEAD.NAME = MASK_HEAD


def check_pointrend_config(cfg: CfgNode, shapes: dict[str, ShapeSpec] | ShapeSpec) -> None:
    """Refuse values that the mask head cannot work with.

    Args:
        cfg: the whole config.
        shapes: what the ROI heads give the mask head: maps by name, or one of pooled features.

    Raises:
        ConfigError: names the key.
    """
    node, point = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.POINT_HEAD
    if isinstance(shapes, ShapeSpec):
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is '{node.POOLER_TYPE}', but {node.NAME} reads whole "
            "feature maps: set it to ''"
        )
    check_features("MODEL.ROI_MASK_HEAD", node, shapes, _ROI_FEATURES)
    check_numbers("MODEL.ROI_MASK_HEAD", node, {"POOLER_RESOLUTION": (2, inf)})
    check_points(cfg)
    if node.CLS_AGNOSTIC_MASK:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK is not for {node.NAME}, whose coarse masks are "
            "one a class: set MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK"
        )
    if not node.POINT_HEAD_ON:
        return
    check_features("MODEL.POINT_HEAD", point, shapes, _ROI_FEATURES)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if num_classes != point.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {point.NUM_CLASSES}, but MODEL.ROI_HEADS.NUM_CLASSES "
            f"is {num_classes}: give both the same number"
        )


def check_points(cfg: CfgNode) -> None:
    """Refuse a point head or numbers of points that no model can use. Raises `ConfigError`."""
    point = cfg.MODEL.POINT_HEAD
    check_choice("MODEL.POINT_HEAD.NAME", point.NAME, [name for name, _ in POINT_HEAD_REGISTRY])
    check_numbers("MODEL.POINT_HEAD", point, _POINT_LIMITS)
    check_numbers(
        "MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD, {"OUTPUT_SIDE_RESOLUTION": (1, inf)}
    )


def check_features(section: str, node: CfgNode, known: Iterable[str], key: str) -> None:
    """Refuse a node's IN_FEATURES that name no map, or one that is not there.

    Args:
        section: where `node` stands, for the message.
        node: has IN_FEATURES.
        known: names of the maps that there are.
        key: what lists them, for the message.

    Raises:
        ConfigError: names the key.
    """
    names, known = tuple(node.IN_FEATURES), list(known)
    if not names or any(name not in known for name in names):
        raise ConfigError(f"{section}.IN_FEATURES is {names}; it must name some of {key} {known}")
