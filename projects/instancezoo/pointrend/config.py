"""Config keys of PointRend, named as in the official project so that its YAML files load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.levels import find_levels

from .head import POINT_HEAD_REGISTRY

MASK_HEAD = "PointRendMaskHeadBatched"
# Names of the mask head in the official files; those of 2020 name its coarse part.
OFFICIAL_MASK_HEADS = ("PointRendMaskHead", "CoarseMaskHead")
# ROI heads of the files of 2020; they pass whole maps to the mask head.
OFFICIAL_ROI_HEADS = "PointRendROIHeads"
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
    # Feature maps of the coarse head, the same for boxes of all sizes.
    coarse.IN_FEATURES = ("p2",)
    # Width and number of its fully connected layers.
    coarse.FC_DIM = 1024
    coarse.NUM_FC = 2
    # Side of the coarse mask, from which subdivision starts.
    coarse.OUTPUT_SIDE_RESOLUTION = 7
    # Refine masks at points; if False, the coarse mask is the result.
    coarse.POINT_HEAD_ON = False

    cfg.MODEL.setdefault("POINT_HEAD", CfgNode())
    point = cfg.MODEL.POINT_HEAD
    # Point head in `POINT_HEAD_REGISTRY`.
    point.NAME = "StandardPointHead"
    # Number of classes of the coarse logits; the same as ROI_HEADS.NUM_CLASSES.
    point.NUM_CLASSES = 80
    # Feature maps that the point head reads.
    point.IN_FEATURES = ("p2",)
    # N: points per region in training.
    point.TRAIN_NUM_POINTS = 196
    # k: k * N random points are candidates in training.
    point.OVERSAMPLE_RATIO = 3
    # beta: the beta * N most uncertain candidates are trained on; the rest of N is random.
    point.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Number of times that the coarse mask's side is doubled in inference. Raise it for large masks.
    point.SUBDIVISION_STEPS = 5
    # Points per mask predicted after each doubling. Fewer are faster, with rougher boundaries.
    point.SUBDIVISION_NUM_POINTS = 784
    # Width and number of the point head's hidden layers.
    point.FC_DIM = 256
    point.NUM_FC = 3
    # One output for all classes; the coarse mask keeps one for each class.
    point.CLS_AGNOSTIC_MASK = False
    # The coarse logits join the input of every layer; if False, that of the first one only.
    point.COARSE_PRED_EACH_LAYER = True


def check_pointrend_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec] | ShapeSpec) -> None:
    """Refuse values that the mask head cannot work with.

    Args:
        cfg: the whole config.
        shapes: of the ROI heads' feature maps, by name; one `ShapeSpec` if they are pooled.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node, num_classes = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if isinstance(shapes, ShapeSpec):
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is '{node.POOLER_TYPE}', but {node.NAME} reads whole "
            "feature maps: set it to ''"
        )
    check_numbers("MODEL.ROI_MASK_HEAD", node, {"POOLER_RESOLUTION": (2, inf)})
    known = shapes, "MODEL.ROI_HEADS.IN_FEATURES"
    find_levels("MODEL.ROI_MASK_HEAD.IN_FEATURES", node.IN_FEATURES, *known)
    if node.CLS_AGNOSTIC_MASK:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK is True, but {node.NAME} has a coarse mask for "
            "each class: set MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK instead"
        )
    _check_point_head(cfg, *known, is_on=node.POINT_HEAD_ON)
    point = cfg.MODEL.POINT_HEAD
    if node.POINT_HEAD_ON and num_classes != point.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {point.NUM_CLASSES}, but MODEL.ROI_HEADS.NUM_CLASSES "
            f"is {num_classes}: set both to the same number"
        )


def check_solov2_pointrend_config(cfg: CfgNode) -> None:
    """Check `cfg.MODEL.POINT_HEAD` beside a valid `cfg.MODEL.SOLOV2`. Raises `ConfigError`."""
    pyramid = cfg.MODEL.SOLOV2.INSTANCE_IN_FEATURES
    _check_point_head(cfg, pyramid, "MODEL.SOLOV2.INSTANCE_IN_FEATURES")


def check_roi_point_head_config(cfg: CfgNode) -> None:
    """Check `cfg.MODEL.POINT_HEAD` beside a mask head on pooled features. Raises `ConfigError`."""
    if not cfg.MODEL.MASK_ON:
        raise ConfigError(
            f"MODEL.MASK_ON is False, but '{cfg.MODEL.ROI_HEADS.NAME}' refines masks: set "
            "MODEL.ROI_HEADS.NAME to 'HTCROIHeads'"
        )
    _check_point_head(cfg, cfg.MODEL.ROI_HEADS.IN_FEATURES, "MODEL.ROI_HEADS.IN_FEATURES")


def _check_point_head(
    cfg: CfgNode, maps: Iterable[str], source: str, *, is_on: bool = True
) -> None:
    point = cfg.MODEL.POINT_HEAD
    check_numbers("MODEL.POINT_HEAD", point, _POINT_LIMITS)
    side_limits = {"OUTPUT_SIDE_RESOLUTION": (1, inf)}
    check_numbers("MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD, side_limits)
    if is_on:
        check_choice("MODEL.POINT_HEAD.NAME", point.NAME, [name for name, _ in POINT_HEAD_REGISTRY])
        find_levels("MODEL.POINT_HEAD.IN_FEATURES", point.IN_FEATURES, maps, source)


def translate_official_names(cfg: CfgNode) -> None:
    """Replace the official project's names by ours, in place.

    Nothing is registered under the official names, so that both packages can be imported in one
    process, in either order.
    """
    if cfg.MODEL.ROI_HEADS.NAME == OFFICIAL_ROI_HEADS:
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    if cfg.MODEL.ROI_MASK_HEAD.NAME in OFFICIAL_MASK_HEADS:
        cfg.MODEL.ROI_MASK_HEAD.NAME = MASK_HEAD
