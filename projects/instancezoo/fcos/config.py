"""Config keys of FCOS, named as in AdelaiDet so that its config files work unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.ignored_keys import IgnoredKey, add_ignored_keys
from instancezoo.modeling.levels import check_levels
from instancezoo.modeling.towers import LEVEL_NORMS, PRIOR_LIMITS, check_group_norm

from .losses import BOX_LOSSES, BOX_QUALITIES, CLASS_NORMALIZERS

# In AdelaiDet's config files, but without effect there too: distances always pass a ReLU.
IGNORED_KEYS = {"USE_RELU": IgnoredKey(True)}

_CHOICES = {
    "NORM": LEVEL_NORMS,
    "LOSS_NORMALIZER_CLS": CLASS_NORMALIZERS,
    "LOC_LOSS_TYPE": BOX_LOSSES,
    "BOX_QUALITY": BOX_QUALITIES,
}
# Lowest and highest sensible value.
_LIMITS = {
    "NUM_CLASSES": (1, inf),
    "NUM_SHARE_CONVS": (0, inf),
    "NUM_CLS_CONVS": (0, inf),
    "NUM_BOX_CONVS": (0, inf),
    "PRIOR_PROB": PRIOR_LIMITS,
    "POS_RADIUS": (0.01, inf),  # CENTER_SAMPLE False sets no limit
    "PRE_NMS_TOPK_TRAIN": (1, inf),
    "PRE_NMS_TOPK_TEST": (1, inf),
    "POST_NMS_TOPK_TRAIN": (1, inf),
    "POST_NMS_TOPK_TEST": (1, inf),
    "NMS_TH": (0, 1),
}


def add_fcos_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.FCOS`."""
    node = cfg.MODEL.setdefault("FCOS", CfgNode())
    _add_network_keys(node)
    _add_training_keys(node)
    _add_inference_keys(node)
    add_ignored_keys(node, IGNORED_KEYS)


def _add_network_keys(node: CfgNode) -> None:
    # Number of classes; follows the data set.
    node.NUM_CLASSES = 80
    # Feature maps of the head, finest first, and their strides in pixels.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Alias of MODEL.FPN.TOP_LEVELS, for published config files; -1 leaves that key as it is.
    node.TOP_LEVELS = -1
    # Number of convolutions before the two towers, in the class tower and in the box tower.
    node.NUM_SHARE_CONVS = 0
    node.NUM_CLS_CONVS = 4
    node.NUM_BOX_CONVS = 4
    # Norm of the towers: "GN" or "NaiveGN" (the same), "BN" or "SyncBN" (one per level), or "none".
    # GN needs channels that are a multiple of 32.
    node.NORM = "GN"
    # Deformable last convolution in the class and the box tower; of version 2 if
    # MODEL.RESNETS.DEFORM_MODULATED.
    node.USE_DEFORMABLE = False
    # Learnt factor of the distances for each level, before the ReLU.
    node.USE_SCALE = True
    # Initial probability of every class, in (0, 1).
    node.PRIOR_PROB = 0.01
    # Keep the maps of the box tower, for methods built on FCOS.
    node.YIELD_BOX_FEATURES = False


def _add_training_keys(node: CfgNode) -> None:
    # Limits between the levels: largest distance from a point to a side of its box, in pixels of
    # the network input. The default is for COCO; scale it with the objects of other images.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Train only points near an object's centre, at most POS_RADIUS strides away. False trains all
    # points in its box.
    node.CENTER_SAMPLE = True
    node.POS_RADIUS = 1.5
    # Focal loss of the classes: alpha, gamma and weight.
    node.LOSS_ALPHA = 0.25
    node.LOSS_GAMMA = 2.0
    node.LOSS_WEIGHT_CLS = 1.0
    # Divisor of the class loss: "fg" number of positive points, "moving_fg" its running average,
    # "all" number of points.
    node.LOSS_NORMALIZER_CLS = "fg"
    # Loss of the boxes: "giou" 1 - GIoU, "iou" -log IoU, "linear_iou" 1 - IoU.
    node.LOC_LOSS_TYPE = "giou"
    # Target of the quality branch: "ctrness" centerness, or "iou" IoU of the predicted box.
    node.BOX_QUALITY = "ctrness"


def _add_inference_keys(node: CfgNode) -> None:
    # Detect in training too, with the keys that end in _TRAIN, for methods with a second stage.
    node.YIELD_PROPOSAL = False
    # Minimum class probability of a candidate (point, class).
    node.INFERENCE_TH_TRAIN = 0.05
    node.INFERENCE_TH_TEST = 0.05
    # Apply this threshold to probability times quality.
    node.THRESH_WITH_CTR = False
    # Maximum number of candidates of each level that enter NMS, best first.
    node.PRE_NMS_TOPK_TRAIN = 1000
    node.PRE_NMS_TOPK_TEST = 1000
    # IoU above which the better box of a class suppresses the other, in [0, 1].
    node.NMS_TH = 0.6
    # Maximum number of detections per image.
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
    levels = cfg.MODEL.FPN.TOP_LEVELS
    if node.TOP_LEVELS not in (-1, levels):  # assigned, not merged, and the backbone is built
        raise ConfigError(
            f"MODEL.FCOS.TOP_LEVELS is {node.TOP_LEVELS}, but the backbone follows "
            f"MODEL.FPN.TOP_LEVELS, which is {levels}; set that key instead"
        )


def translate_fcos_keys(cfg: CfgNode) -> None:
    """Replace the backbone's name and MODEL.FCOS.TOP_LEVELS of published config files, in place.

    Raises:
        ConfigError: MODEL.FCOS.TOP_LEVELS is not between -1 and 2.
    """
    if cfg.MODEL.BACKBONE.NAME == "build_fcos_resnet_fpn_backbone":
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_top_levels_backbone"
    node = cfg.MODEL.FCOS
    check_numbers("MODEL.FCOS", node, {"TOP_LEVELS": (-1, 2)})
    if node.TOP_LEVELS >= 0:
        cfg.MODEL.FPN.TOP_LEVELS, node.TOP_LEVELS = node.TOP_LEVELS, -1
