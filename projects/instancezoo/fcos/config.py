"""Config keys of FCOS, named as in AdelaiDet so that its config files work here."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import check_choice, check_numbers
from instancezoo.modeling.ignored_keys import IgnoredKey, add_ignored_keys, check_ignored_keys
from instancezoo.modeling.levels import check_levels
from instancezoo.modeling.towers import LEVEL_NORMS, PRIOR_LIMITS, check_group_norm

from .losses import BOX_LOSSES, BOX_QUALITIES, CLASS_NORMALIZERS

# Read by nothing in AdelaiDet either; its configs name it. Distances always pass a ReLU.
IGNORED_KEYS = {"USE_RELU": IgnoredKey(True)}

_CHOICES = {
    "NORM": LEVEL_NORMS,
    "LOSS_NORMALIZER_CLS": CLASS_NORMALIZERS,
    "LOC_LOSS_TYPE": BOX_LOSSES,
    "BOX_QUALITY": BOX_QUALITIES,
}
# Lowest and highest value that can be meant.
_LIMITS = {
    "NUM_CLASSES": (1, inf),
    "NUM_SHARE_CONVS": (0, inf),
    "NUM_CLS_CONVS": (0, inf),
    "NUM_BOX_CONVS": (0, inf),
    "PRIOR_PROB": PRIOR_LIMITS,
    "POS_RADIUS": (0.01, inf),  # without limit: CENTER_SAMPLE False
    "PRE_NMS_TOPK_TRAIN": (1, inf),
    "PRE_NMS_TOPK_TEST": (1, inf),
    "POST_NMS_TOPK_TRAIN": (1, inf),
    "POST_NMS_TOPK_TEST": (1, inf),
    "NMS_TH": (0, 1),
}


def add_fcos_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.FCOS`."""
    cfg.MODEL.FCOS = type(cfg)()  # a config merges only with nodes of its own class
    node = cfg.MODEL.FCOS
    _add_network_keys(node)
    _add_training_keys(node)
    _add_inference_keys(node)
    add_ignored_keys(node, IGNORED_KEYS)


def _add_network_keys(node: CfgNode) -> None:
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Another name of MODEL.FPN.TOP_LEVELS, in published configs; -1 leaves that key as it is.
    node.TOP_LEVELS = -1
    # Convolutions before the two towers, in the class tower and in the box tower.
    node.NUM_SHARE_CONVS = 0
    node.NUM_CLS_CONVS = 4
    node.NUM_BOX_CONVS = 4
    # "GN", "NaiveGN" (the same numbers), "BN" or "SyncBN" (one for each level), or "none".
    node.NORM = "GN"
    # The last convolution of the two towers is deformable, of version 2 if
    # MODEL.RESNETS.DEFORM_MODULATED.
    node.USE_DEFORMABLE = False
    # A learnt factor for each level before the ReLU of the distances.
    node.USE_SCALE = True
    # Probability of each class at the start of training.
    node.PRIOR_PROB = 0.01
    # Keep the maps of the box tower, for methods built on FCOS.
    node.YIELD_BOX_FEATURES = False


def _add_training_keys(node: CfgNode) -> None:
    # Largest distance from a point to a side of its box, in pixels of the network input, of each
    # level but the last. The default is for COCO; scale it with the objects of other images.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Only points around an object's centre are positive, up to POS_RADIUS strides away.
    node.CENTER_SAMPLE = True
    node.POS_RADIUS = 1.5
    # Focal loss of the classes.
    node.LOSS_ALPHA = 0.25
    node.LOSS_GAMMA = 2.0
    # What the class loss is divided by: the number of "fg" positive points, "moving_fg" its running
    # average, or "all" points.
    node.LOSS_NORMALIZER_CLS = "fg"
    node.LOSS_WEIGHT_CLS = 1.0
    # "giou", "iou" (its logarithm) or "linear_iou"
    node.LOC_LOSS_TYPE = "giou"
    # What the quality branch learns: "ctrness" or "iou", the IoU of the predicted box.
    node.BOX_QUALITY = "ctrness"


def _add_inference_keys(node: CfgNode) -> None:
    # Detect in training too, by the keys that end in TRAIN, for methods with a second stage.
    node.YIELD_PROPOSAL = False
    # Lowest probability of a candidate (a pair of a point and a class).
    node.INFERENCE_TH_TRAIN = 0.05
    node.INFERENCE_TH_TEST = 0.05
    # Compare probability times quality with it, not the probability alone.
    node.THRESH_WITH_CTR = False
    # Candidates of each level that enter NMS, best first.
    node.PRE_NMS_TOPK_TRAIN = 1000
    node.PRE_NMS_TOPK_TEST = 1000
    # IoU above which the better box of a class suppresses the other.
    node.NMS_TH = 0.6
    # Detections of an image.
    node.POST_NMS_TOPK_TRAIN = 100
    node.POST_NMS_TOPK_TEST = 100


def check_fcos_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Refuse values that FCOS cannot work with.

    Args:
        cfg: the whole config.
        shapes: outputs of the backbone.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node = cfg.MODEL.FCOS
    check_levels(node, "MODEL.FCOS", shapes)
    check_numbers("MODEL.FCOS", node, _LIMITS)
    for key, choices in _CHOICES.items():
        check_choice(f"MODEL.FCOS.{key}", node[key], choices)
    channels = shapes[node.IN_FEATURES[0]].channels
    check_group_norm(node.NORM, {"MODEL.FPN.OUT_CHANNELS": channels})
    check_ignored_keys("MODEL.FCOS", node, IGNORED_KEYS)


def translate_fcos_keys(cfg: CfgNode) -> None:
    """Put our backbone and MODEL.FPN.TOP_LEVELS in place of what published configs name, in place.

    Raises:
        ConfigError: MODEL.FCOS.TOP_LEVELS is no number of levels.
    """
    if cfg.MODEL.BACKBONE.NAME == "build_fcos_resnet_fpn_backbone":
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_top_levels_backbone"
    node = cfg.MODEL.FCOS
    check_numbers("MODEL.FCOS", node, {"TOP_LEVELS": (-1, 2)})
    if node.TOP_LEVELS >= 0:
        cfg.MODEL.FPN.TOP_LEVELS, node.TOP_LEVELS = node.TOP_LEVELS, -1
