"""Config keys of SOLO and Decoupled SOLO."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.levels import find_levels
from instancezoo.modeling.towers import NORMS, PRIOR_LIMITS, check_group_norm

from .targets import RESIZE_RULES

DCN_VERSIONS = {"DCN": "v1", "DCNv2": "v2"}
_CHOICES = {
    "NORM": NORMS,
    "TYPE_DCN": tuple(DCN_VERSIONS),
    "TARGET_RESIZE": RESIZE_RULES,
    "NMS_KERNEL": ("gaussian", "linear"),
}
_LIMITS = {
    "NUM_CLASSES": (1, inf),
    "SIGMA": (0, inf),
    "NUM_INSTANCE_CONVS": (1, inf),
    "PRIOR_PROB": PRIOR_LIMITS,
    "NMS_PRE": (1, inf),
    "MAX_PER_IMG": (1, inf),
}
_ONE_PER_LEVEL = ("INSTANCE_IN_FEATURES", "NUM_GRIDS", "FPN_SCALE_RANGES")


def add_solo_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SOLO`."""
    cfg.MODEL.setdefault("SOLO", CfgNode())
    add_grid_keys(cfg.MODEL.SOLO)
    # Channels and number of the convolutions in the category and mask towers.
    cfg.MODEL.SOLO.INSTANCE_CHANNELS = 256
    cfg.MODEL.SOLO.NUM_INSTANCE_CONVS = 7
    # Index of the category tower's convolution before which features are resized to S x S.
    cfg.MODEL.SOLO.CATE_DOWN_POS = 0
    # Decoupled SOLO light: one mask tower for both the x and the y branch.
    cfg.MODEL.SOLO.SHARED_MASK_TOWER = False


def add_grid_keys(node: CfgNode) -> None:
    """Add to a method's node the keys that SOLO and SOLOv2 share."""
    # Feature maps of the heads, finest first, one per grid.
    node.INSTANCE_IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    # S of each level: the padded input is divided into S x S cells. Raise it for dense scenes.
    node.NUM_GRIDS = [40, 36, 24, 16, 12]
    # Smallest and largest object of each level, in pixels of the network input (square root of the
    # box area). Ranges may overlap: the object is then trained on both levels.
    node.FPN_SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # epsilon: share of the box around the mass centre whose cells are positive, in [0, 1].
    node.SIGMA = 0.2
    # Number of classes; follows the data set.
    node.NUM_CLASSES = 80
    # Norm of the towers; GN needs channels that are a multiple of 32.
    node.NORM = "GN"
    # Initial probability of every class and mask, in (0, 1).
    node.PRIOR_PROB = 0.01
    # Deformable convolutions in the towers, of type "DCN" (version 1) or "DCNv2".
    node.USE_DCN_IN_INSTANCE = False
    node.TYPE_DCN = "DCN"
    # Light models: only the last convolution of each tower is deformable.
    node.DCN_LAST_CONV_ONLY = False
    # How target masks are reduced. "padded": pad, then apply the 2 x 2 rule (official SOLO).
    # "opencv": resize the unpadded mask with OpenCV's uint8 arithmetic (AdelaiDet).
    node.TARGET_RESIZE = "padded"

    # Minimum class probability of a candidate (cell, class). Raise it for speed.
    node.SCORE_THR = 0.1
    # Probability above which a pixel belongs to the mask.
    node.MASK_THR = 0.5
    # Maximum number of candidates that enter Matrix NMS, best first.
    node.NMS_PRE = 500
    # Decay of Matrix NMS, "gaussian" or "linear"; a larger sigma of the Gaussian decays more.
    node.NMS_KERNEL = "gaussian"
    node.NMS_SIGMA = 2.0
    # Minimum score after Matrix NMS.
    node.UPDATE_THR = 0.05
    # Maximum number of detections per image.
    node.MAX_PER_IMG = 100
    # Keep detections whose mask lies in the padding and ends empty, as the official code does.
    node.KEEP_EMPTY_MASKS = False

    # Focal loss of the categories, and lambda, the weight of the masks' Dice loss.
    node.setdefault("LOSS", CfgNode())
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0
    node.LOSS.FOCAL_WEIGHT = 1.0
    node.LOSS.DICE_WEIGHT = 3.0


def check_solo_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check `cfg.MODEL.SOLO`, see `check_grid_config`."""
    check_grid_config("MODEL.SOLO", cfg.MODEL.SOLO, shapes)


def check_grid_config(key: str, node: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Refuse values of a method's node that it cannot work with.

    Args:
        key: of `node`, for the message.
        node: with the keys of `add_grid_keys`.
        shapes: outputs of the backbone.

    Raises:
        ConfigError: with the key and what it may be.
    """
    for name, choices in _CHOICES.items():
        check_choice(f"{key}.{name}", node[name], choices)
    check_numbers(key, node, _LIMITS)
    check_group_norm(node.NORM, {f"{key}.INSTANCE_CHANNELS": node.INSTANCE_CHANNELS})
    if not all(isinstance(side, int) and side > 0 for side in node.NUM_GRIDS):
        raise ConfigError(f"{key}.NUM_GRIDS is {node.NUM_GRIDS}; it must be whole numbers above 0")
    if not all(_is_range(pair) for pair in node.FPN_SCALE_RANGES):
        raise ConfigError(
            f"{key}.FPN_SCALE_RANGES is {node.FPN_SCALE_RANGES}; it must be one pair "
            "[smallest size, largest size] in pixels for each level"
        )
    names = node.INSTANCE_IN_FEATURES
    find_levels(f"{key}.INSTANCE_IN_FEATURES", names, shapes)
    strides = [shapes[name].stride for name in names]
    if strides != sorted(set(strides)):
        raise ConfigError(
            f"{key}.INSTANCE_IN_FEATURES is {names}; it must name each map once, the finest first"
        )
    counts = {name: len(node[name]) for name in _ONE_PER_LEVEL}
    if len(set(counts.values())) != 1 or len(names) < 2:
        raise ConfigError(
            f"these keys of {key} must have one value for each of two or more levels; their "
            f"lengths are {counts}"
        )


def lower_mask_threshold(cfg: CfgNode, name: str) -> None:
    """Set the mask threshold to the scores of untrained masks, which are close to the prior.

    Args:
        cfg: the whole config; changed in place.
        name: of the method's node in `cfg.MODEL`.
    """
    node = cfg.MODEL[name]
    # A decoupled mask is the product of two.
    power = 2 if cfg.MODEL.META_ARCHITECTURE == "DecoupledSOLO" else 1
    node.MASK_THR = node.PRIOR_PROB**power


def _is_range(pair: Any) -> bool:
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    return all(isinstance(size, int | float) for size in pair) and 0 <= pair[0] <= pair[1]
