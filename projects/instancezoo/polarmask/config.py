"""Config keys of PolarMask."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.levels import check_levels
from instancezoo.modeling.towers import NORMS, PRIOR_LIMITS, check_group_norm

_CHOICES = {
    "NORM": NORMS,
    "CENTER": ("mass", "box"),
    "RAY_TARGETS": ("nearest_bin", "intersection"),
    "NMS_BOX": ("branch", "polygon"),
}
# Lowest and highest value that can be meant.
_LIMITS = {
    "NUM_CLASSES": (1, inf),
    "NUM_RAYS": (3, 360),
    "SIZE_DIVISIBILITY": (0, inf),
    "NUM_CONVS": (0, inf),
    "PRIOR_PROB": PRIOR_LIMITS,
    "CENTER_RADIUS": (0, inf),
    "TOPK_CANDIDATES_TEST": (1, inf),
    "NMS_THRESH_TEST": (0, 1),
}


def add_polarmask_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.POLARMASK`, and one key to `cfg.INPUT`."""
    cfg.MODEL.POLARMASK = type(cfg)()  # a config merges only with nodes of its own class
    node = cfg.MODEL.POLARMASK
    _add_network_keys(node)
    _add_training_keys(node)
    _add_inference_keys(node)
    # Another name of INPUT.MAPPER "polarmask".
    cfg.INPUT.FIND_BORDERS = False


def _add_network_keys(node: CfgNode) -> None:
    node.NUM_CLASSES = 80
    # n: rays of a mask, 360 / n degrees apart; it must divide 360.
    node.NUM_RAYS = 36
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Pad images to a multiple of this many pixels, and of what the backbone needs; 0 for the
    # latter alone.
    node.SIZE_DIVISIBILITY = 0
    # Convolutions of each tower.
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # All convolutions of the towers are deformable, of version 2.
    node.USE_DEFORMABLE = False
    # Predict boxes too; without them NMS_BOX must be "polygon".
    node.BOX_BRANCH = True
    # Probability of each class at the start of training.
    node.PRIOR_PROB = 0.01


def _add_training_keys(node: CfgNode) -> None:
    # Largest distance from a point to a side of its box, in pixels of the network input, of each
    # level but the last. The default is for COCO; scale it with the objects of other images.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Only points this near to an object's centre are positive, in strides; 0 for all in the box.
    node.CENTER_RADIUS = 1.5
    # "mass", the centroid of the largest contour, or "box"
    node.CENTER = "mass"
    # "nearest_bin", the published rule, or "intersection", where a ray really leaves the contour.
    node.RAY_TARGETS = "nearest_bin"
    # parity: by the nearest-bin rule the downward ray does not look at bins of 357 to 359 degrees.
    # True lets it, as all other rays do.
    node.RAY_WRAP = False
    # Rays that miss the contour take values between their neighbours', not 1e-6 pixels.
    node.FILL_MISSED_RAYS = False
    # parity: boxes are first and last pixel, so that width = x2 - x1 + 1. False: Detectron2's.
    node.LEGACY_PLUS_ONE = True
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0


def _add_inference_keys(node: CfgNode) -> None:
    # Points of each level that are compared with the threshold, best first.
    node.TOPK_CANDIDATES_TEST = 1000
    # Lowest class probability, without centerness, of a candidate.
    node.SCORE_THRESH_TEST = 0.05
    # Score = probability * (centerness + this): it may reach 1.5.
    node.CENTERNESS_OFFSET = 0.5
    # What NMS compares, and the result's boxes: those of the box "branch", or around the "polygon".
    node.NMS_BOX = "branch"
    # IoU above which the better detection of a class suppresses the other.
    node.NMS_THRESH_TEST = 0.5
    # With LEGACY_PLUS_ONE: return boxes in Detectron2's frame, one pixel wider and higher.
    node.OUTPUT_PLUS_ONE = False


def check_polarmask_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Refuse values that PolarMask cannot work with.

    Args:
        cfg: the whole config.
        shapes: outputs of the backbone.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node = cfg.MODEL.POLARMASK
    for key, choices in _CHOICES.items():
        check_choice(f"MODEL.POLARMASK.{key}", node[key], choices)
    check_numbers("MODEL.POLARMASK", node, _LIMITS)
    if 360 % node.NUM_RAYS:
        raise ConfigError(f"MODEL.POLARMASK.NUM_RAYS is {node.NUM_RAYS}; it must divide 360")
    if node.NMS_BOX == "branch" and not node.BOX_BRANCH:
        raise ConfigError(
            "MODEL.POLARMASK.BOX_BRANCH False leaves no boxes for NMS_BOX 'branch'; set "
            "MODEL.POLARMASK.NMS_BOX 'polygon'"
        )
    check_group_norm(node.NORM, {"MODEL.FPN.OUT_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS})
    check_levels(node, "MODEL.POLARMASK", shapes)


def translate_polarmask_keys(cfg: CfgNode) -> None:
    """Put INPUT.MAPPER "polarmask" for INPUT.FIND_BORDERS True, in place."""
    if cfg.INPUT.FIND_BORDERS and cfg.INPUT.MAPPER == "instance":
        cfg.INPUT.MAPPER, cfg.INPUT.FIND_BORDERS = "polarmask", False
