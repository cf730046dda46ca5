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
# Lowest and highest sensible value.
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
    node = cfg.MODEL.setdefault("POLARMASK", CfgNode())
    _add_network_keys(node)
    _add_training_keys(node)
    _add_inference_keys(node)
    # Alias of INPUT.MAPPER "polarmask".
    cfg.INPUT.FIND_BORDERS = False


def _add_network_keys(node: CfgNode) -> None:
    # Number of classes; follows the data set.
    node.NUM_CLASSES = 80
    # n: number of rays of a mask, 360 / n degrees apart; a divisor of 360.
    node.NUM_RAYS = 36
    # Feature maps of the head, finest first, and their strides in pixels.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Pad images to a multiple of this many pixels and of the backbone's own divisor; 0 for the
    # latter alone.
    node.SIZE_DIVISIBILITY = 0
    # Number of convolutions in each tower.
    node.NUM_CONVS = 4
    # Norm of the towers; GN needs channels that are a multiple of 32.
    node.NORM = "GN"
    # Deformable convolutions, of version 2, in the towers.
    node.USE_DEFORMABLE = False
    # Predict boxes too. Without them NMS_BOX must be "polygon".
    node.BOX_BRANCH = True
    # Initial probability of every class, in (0, 1).
    node.PRIOR_PROB = 0.01


def _add_training_keys(node: CfgNode) -> None:
    # Limits between the levels: largest distance from a point to a side of its box, in pixels of
    # the network input. The default is for COCO; scale it with the objects of other images.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Train only points near an object's centre, at most this many strides away; 0 trains all points
    # in its box.
    node.CENTER_RADIUS = 1.5
    # That centre: "mass", the centroid of the largest contour, or "box".
    node.CENTER = "mass"
    # Length of a ray: "nearest_bin", the published rule, or "intersection", where the ray leaves
    # the contour. Set the latter for small images or objects.
    node.RAY_TARGETS = "nearest_bin"
    # parity: with "nearest_bin" the downward ray ignores bins of 357 to 359 degrees. True includes
    # them, as for all other rays.
    node.RAY_WRAP = False
    # Fill a ray that misses the contour from its neighbours; False makes it 1e-6 pixels long.
    node.FILL_MISSED_RAYS = False
    # parity: boxes are first and last pixel, width = x2 - x1 + 1. False: Detectron2's frame.
    node.LEGACY_PLUS_ONE = True
    # Focal loss of the classes.
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0


def _add_inference_keys(node: CfgNode) -> None:
    # Maximum number of points of each level, best first, before the score threshold.
    node.TOPK_CANDIDATES_TEST = 1000
    # Minimum class probability of a candidate (point, class), without centerness.
    node.SCORE_THRESH_TEST = 0.05
    # Score = probability * (centerness + this offset); with 0.5 it reaches 1.5.
    node.CENTERNESS_OFFSET = 0.5
    # Boxes for NMS and of the result: of the box "branch", or around the "polygon".
    node.NMS_BOX = "branch"
    # IoU above which the better detection of a class suppresses the other, in [0, 1].
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
    check_levels(node, "MODEL.POLARMASK", shapes)
    channels = shapes[node.IN_FEATURES[0]].channels
    check_group_norm(node.NORM, {"MODEL.FPN.OUT_CHANNELS": channels})
    if cfg.INPUT.FIND_BORDERS and cfg.INPUT.MAPPER == "instance":  # assigned, not merged
        raise ConfigError(
            "INPUT.FIND_BORDERS is True, but INPUT.MAPPER is 'instance'; set INPUT.MAPPER "
            "'polarmask' instead"
        )


def translate_polarmask_keys(cfg: CfgNode) -> None:
    """Replace INPUT.FIND_BORDERS True by INPUT.MAPPER "polarmask", in place."""
    if cfg.INPUT.FIND_BORDERS and cfg.INPUT.MAPPER == "instance":
        cfg.INPUT.MAPPER, cfg.INPUT.FIND_BORDERS = "polarmask", False
