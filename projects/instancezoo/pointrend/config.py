"""Config keys of PointRend, named as in the official project so that its YAML files load."""

from __future__ import annotations

from detectron2.config import CfgNode

MASK_HEAD = "PointRendMaskHeadBatched"
# What the official files call the mask head; those of 2020 called the coarse part by its name.
OFFICIAL_MASK_HEADS = ("PointRendMaskHead", "CoarseMaskHead")
# The files of 2020 had ROI heads of their own, which handed whole maps to the mask head.
OFFICIAL_ROI_HEADS = "PointRendROIHeads"


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
