"""Config keys of YOLACT and YOLACT++."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.levels import find_levels

from .decode import NMS_TYPES

_CHOICES = {"NMS_TYPE": NMS_TYPES}
# Lowest and highest sensible value.
_LIMITS = {
    "NUM_CLASSES": (1, inf),
    "NUM_PROTOTYPES": (1, 1024),
    "HEAD_CHANNELS": (1, inf),
    "PROTO_CHANNELS": (1, inf),
    "POS_IOU": (0, 1),
    "NEG_IOU": (0, 1),
    "CROWD_IOU": (0, inf),
    "NEG_POS_RATIO": (0, inf),
    "MASKS_TO_TRAIN": (1, inf),
    "FREEZE_NORM_BELOW": (0, inf),
    "NMS_TOP_K": (1, inf),
    "NMS_THRESH": (0, 1),
}


def add_yolact_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.YOLACT`."""
    node = cfg.MODEL.setdefault("YOLACT", CfgNode())
    _add_network_keys(node)
    _add_training_keys(node)
    _add_inference_keys(node)
    _add_mask_iou_keys(node)


def _add_network_keys(node: CfgNode) -> None:
    # Number of classes; follows the data set.
    node.NUM_CLASSES = 80
    # Feature maps of the head, finest first. The prototypes are twice the size of the first.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # k: number of prototypes, and of mask coefficients of each anchor.
    node.NUM_PROTOTYPES = 32
    # Channels of the convolution before the predictions, and of those before the prototypes.
    node.HEAD_CHANNELS = 256
    node.PROTO_CHANNELS = 256
    # Sides of the anchors of each level, in pixels of the network input; scale them with
    # INPUT.FIXED_SIZE. Anchors of a cell: each side with each aspect ratio (width / height).
    node.ANCHOR_SCALES = [[24], [48], [96], [192], [384]]
    node.ASPECT_RATIOS = [1.0, 0.5, 2.0]
    # parity: anchors are as high as wide, which makes squares of several sizes of the aspect
    # ratios. The published YOLACT (not YOLACT++) weights need it; else it should be False.
    node.SQUARE_ANCHORS = True


def _add_training_keys(node: CfgNode) -> None:
    # IoU from which an anchor is positive, and under which it is background. Between the two it
    # has no class loss.
    node.POS_IOU = 0.5
    node.NEG_IOU = 0.4
    # Anchors are not background where crowds cover more than this share of them.
    node.CROWD_IOU = 0.7
    # Number of hardest background anchors per positive one in the class loss.
    node.NEG_POS_RATIO = 3
    # Weights of the losses of boxes, classes, masks and of the semantic branch.
    node.BOX_WEIGHT = 1.5
    node.CLS_WEIGHT = 1.0
    node.MASK_WEIGHT = 6.125
    node.SEMANTIC_WEIGHT = 1.0
    # Largest number of positive anchors of an image whose masks are trained, chosen at random.
    node.MASKS_TO_TRAIN = 100
    # Freeze the batch norms below the pyramid if a GPU trains on fewer images than this; 0 never
    # does. Synchronised norms are always trained.
    node.FREEZE_NORM_BELOW = 6


def _add_inference_keys(node: CfgNode) -> None:
    # Candidates are anchors whose best class has a higher probability.
    node.SCORE_THRESH_TEST = 0.05
    # Detections have a higher score. (SCORE_THRESH_TEST is compared with an anchor's best class;
    # its other classes may score less.)
    node.FINAL_SCORE_THRESH = 0.0
    # Suppression of duplicates: "fast" (section 3.3 of YOLACT), "cross_class" (the same among
    # all classes together), or "exact" (greedy NMS of each class).
    node.NMS_TYPE = "fast"
    # Candidates of each class that enter NMS, best first.
    node.NMS_TOP_K = 200
    # IoU above which a better candidate suppresses another, in [0, 1].
    node.NMS_THRESH = 0.5
    # parity: cut boxes to whole pixels, as published. It costs box AP.
    node.TRUNCATE_BOXES = False


def _add_mask_iou_keys(node: CfgNode) -> None:
    # Mask re-scoring network of YOLACT++ (section 6.1): mask score = class probability * IoU.
    iou = node.setdefault("MASKIOU", CfgNode())
    iou.ENABLED = False
    # Output channels of its 3x3 convolutions of stride 2 without padding.
    iou.CONV_CHANNELS = [8, 16, 32, 64, 128]
    # Weight of its loss.
    iou.WEIGHT = 25.0
    # Objects of at most this many prototype cells do not train it.
    iou.MIN_AREA = 25
    # Also rank detections and evaluate boxes by the mask score.
    iou.RESCORE_BOX = False


def check_yolact_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Refuse values that YOLACT cannot work with.

    Args:
        cfg: the whole config.
        shapes: outputs of the backbone.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node = cfg.MODEL.YOLACT
    for key, choices in _CHOICES.items():
        check_choice(f"MODEL.YOLACT.{key}", node[key], choices)
    check_numbers("MODEL.YOLACT", node, _LIMITS)
    find_levels("MODEL.YOLACT.IN_FEATURES", node.IN_FEATURES, shapes)
    if not tuple(cfg.INPUT.FIXED_SIZE):
        raise ConfigError(
            "INPUT.FIXED_SIZE is (); YOLACT needs the height and width of the network input, "
            "such as (550, 550)"
        )
    if node.NEG_IOU > node.POS_IOU:
        raise ConfigError(
            f"MODEL.YOLACT.NEG_IOU is {node.NEG_IOU}; it must be at most POS_IOU, {node.POS_IOU}"
        )
    _check_anchors(node)
    if node.MASKIOU.ENABLED and not node.MASKIOU.CONV_CHANNELS:
        raise ConfigError("MODEL.YOLACT.MASKIOU.CONV_CHANNELS is []; list at least one number")
    if node.MASKIOU.RESCORE_BOX and not node.MASKIOU.ENABLED:
        raise ConfigError(
            "MODEL.YOLACT.MASKIOU.RESCORE_BOX needs MODEL.YOLACT.MASKIOU.ENABLED True"
        )
    if cfg.TEST.DETECTIONS_PER_IMAGE == 0:
        raise ConfigError("TEST.DETECTIONS_PER_IMAGE is 0; it must be -1 (no limit), 1 or more")


def _check_anchors(node: CfgNode) -> None:
    scales, ratios = node.ANCHOR_SCALES, node.ASPECT_RATIOS
    if len(scales) != len(node.IN_FEATURES):
        raise ConfigError(
            f"MODEL.YOLACT.ANCHOR_SCALES has {len(scales)} lists; it must have one for each of "
            f"the {len(node.IN_FEATURES)} levels of MODEL.YOLACT.IN_FEATURES"
        )
    counts = {len(level) if isinstance(level, list | tuple) else 0 for level in scales}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError(
            f"MODEL.YOLACT.ANCHOR_SCALES is {scales}; every level must have the same number of "
            "sides, at least one, such as [[24], [48]]"
        )
    sides = [side for level in scales for side in level]
    for key, values in (("ANCHOR_SCALES", sides), ("ASPECT_RATIOS", ratios)):
        if not values or not all(isinstance(v, int | float) and 0 < v < inf for v in values):
            raise ConfigError(f"MODEL.YOLACT.{key} is {node[key]}; it must be positive numbers")
