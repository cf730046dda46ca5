"""Config keys of FCOS, named as in AdelaiDet so that its config files work here."""

from __future__ import annotations

from math import inf

from detectron2.config import CfgNode

from instancezoo.modeling.towers import PRIOR_LIMITS

# Outside of these a number cannot be meant.
FCOS_LIMITS = {
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


def _add_network_keys(node: CfgNode) -> None:
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Pyramid levels above P5: 2, 1 or 0.
    node.TOP_LEVELS = 2
    # Blocks before, in and beside the two towers.
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
    # Read by nothing, there as here; published configs name it. Distances always pass a ReLU.
    node.USE_RELU = True
    node.PRIOR_PROB = 0.01
    # Keep the maps of the box tower for methods that stand on FCOS.
    node.YIELD_BOX_FEATURES = False


def _add_training_keys(node: CfgNode) -> None:
    # Largest distance to a side of the box, in pixels, that each level but the last answers for.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Only points around an object's centre answer for it, up to this many strides away.
    node.CENTER_SAMPLE = True
    node.POS_RADIUS = 1.5
    node.LOSS_ALPHA = 0.25
    node.LOSS_GAMMA = 2.0
    # "fg" positive points, "moving_fg" their running average, "all" points.
    node.LOSS_NORMALIZER_CLS = "fg"
    node.LOSS_WEIGHT_CLS = 1.0
    # "giou", "iou" (its logarithm) or "linear_iou"
    node.LOC_LOSS_TYPE = "giou"
    # What the quality branch learns: "ctrness" or "iou", the IoU of the predicted box.
    node.BOX_QUALITY = "ctrness"


def _add_inference_keys(node: CfgNode) -> None:
    # Detect in training too, by the keys that end in TRAIN, for methods with a second stage.
    node.YIELD_PROPOSAL = False
    # A (point, class) above this probability is a candidate.
    node.INFERENCE_TH_TRAIN = 0.05
    node.INFERENCE_TH_TEST = 0.05
    # The threshold is on probability times quality.
    node.THRESH_WITH_CTR = False
    # So many candidates of each level enter NMS.
    node.PRE_NMS_TOPK_TRAIN = 1000
    node.PRE_NMS_TOPK_TEST = 1000
    node.NMS_TH = 0.6
    node.POST_NMS_TOPK_TRAIN = 100
    node.POST_NMS_TOPK_TEST = 100
