"""Config keys of PolarMask."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_polarmask_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.POLARMASK`."""
    node = cfg.MODEL.POLARMASK = type(cfg)()  # a config merges only with nodes of its own class
    node.NUM_CLASSES = 80
    # n: rays of a mask, 360 / n degrees apart; it must divide 360.
    node.NUM_RAYS = 36
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    # Images are padded to a multiple of this; 0 for what the backbone needs.
    node.SIZE_DIVISIBILITY = 0
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # All convolutions of the towers are deformable, of version 2.
    node.USE_DEFORMABLE = False
    # Whether boxes are predicted; without them NMS_BOX must be "polygon".
    node.BOX_BRANCH = True
    node.PRIOR_PROB = 0.01

    # Largest distance in pixels from a location to its box's sides, of each level but the last.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # Locations within so many strides of the centre are positive; 0 for all inside the box.
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

    # So many locations of each level enter the threshold.
    node.TOPK_CANDIDATES_TEST = 1000
    # Of the class probability alone.
    node.SCORE_THRESH_TEST = 0.05
    # Score = probability * (centerness + this): it may reach 1.5.
    node.CENTERNESS_OFFSET = 0.5
    # What NMS compares, and the result's boxes: those of the box "branch", or around the "polygon".
    node.NMS_BOX = "branch"
    node.NMS_THRESH_TEST = 0.5
    # With LEGACY_PLUS_ONE: hand out boxes in Detectron2's frame, one pixel wider and higher.
    node.OUTPUT_PLUS_ONE = False
