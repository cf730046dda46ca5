"""Config keys of deep metric learning."""

from __future__ import annotations

from math import inf
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers, is_number
from instancezoo.layers.metric import PAIR_WEIGHTS
from instancezoo.layers.semiconv import COORD_MODES
from instancezoo.modeling.levels import check_grid_stride, find_levels
from instancezoo.modeling.masks.label import RESIZES
from instancezoo.modeling.towers import NORMS, check_group_norm

EMBED_LOSSES = ("metric", "discriminative")
GROUPINGS = ("seeds", "meanshift")
_WEIGHT = (0, 1e6)
_LIMITS = {
    "NUM_CLASSES": (1, 10**5),
    "CONVS_DIM": (1, 2**16),
    "NUM_CONVS": (0, 100),
    "EMBED_DIM": (1, 4096),
    "COORD_UNIT": (1e-3, 1e6),
    "EMBED_LOSS_WEIGHT": _WEIGHT,
    "NUM_SAMPLES": (1, 10**5),
    "PULL_MARGIN": (0, 1e6),
    "PUSH_MARGIN": (0, 1e6),
    "PULL_WEIGHT": _WEIGHT,
    "PUSH_WEIGHT": _WEIGHT,
    "REG_WEIGHT": _WEIGHT,
    "SEED_LOSS_WEIGHT": _WEIGHT,
    "SEED_RAMP": (0, 1),
    "SEED_IOU": (0, 1),
    "SEM_LOSS_WEIGHT": _WEIGHT,
    "SEED_ALPHA": (0, 1e3),
    "MAX_SEEDS": (1, inf),
    "MIN_OBJECTIVE": (0, 1),
    "NMS_THRESH": (0, 1),
    "BANDWIDTH": (1e-6, 1e6),
    "T_FG": (0, 1),
    "MIN_SIZE": (1, inf),
    "MAX_MISSES": (1, inf),
    "MAX_INSTANCES": (1, inf),
}


def add_metric_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.METRIC`: the network, the losses, and the grouping."""
    node = cfg.MODEL.setdefault("METRIC", CfgNode())
    _add_network_keys(node)
    _add_loss_keys(node)
    _add_grouping_keys(node)


def _add_network_keys(node: CfgNode) -> None:
    node.NUM_CLASSES = 80
    # Maps that are summed, the finest first.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Stride in pixels of the sum, on which pixels are grouped; that of the finest map or less.
    node.STRIDE = 4
    # Channels of the sum and of the hidden layers; norm of the convolutions before the sum.
    node.CONVS_DIM = 128
    node.NORM = "GN"
    # Hidden 3x3 convolutions of the embedding and of the classifiers.
    node.NUM_CONVS = 1
    # Channels of the embedding (d).
    node.EMBED_DIM = 64
    # Position that is added to the first two, the semi-convolution: "image", the one in the network
    # input, COORD_UNIT pixels are 1; "index", column and row of the map; "none", nothing, as in
    # the paper. Sets whose objects look alike need one.
    node.COORD_MODE = "none"
    node.COORD_UNIT = 64.0


def _add_loss_keys(node: CfgNode) -> None:
    # Loss of the embedding: "metric", cross-entropy of pairs of sampled pixels, or
    # "discriminative", pixels to their object's mean and means from each other.
    node.EMBED_LOSS = "metric"
    node.EMBED_LOSS_WEIGHT = 1.0
    # Pixels sampled in each object (K), and at least of the background for the seeds.
    node.NUM_SAMPLES = 10
    # Count the background of an image as one more object of the embedding's loss. The paper does
    # not; masks then take in background that happens to be similar, until training is long enough.
    node.SAMPLE_BACKGROUND = False
    # "metric": a pair's weight is inverse to the "sum" or the "product" of its objects' sizes.
    node.PAIR_WEIGHT = "sum"
    # "discriminative": distances that cost nothing, to the mean (delta_v) and half of that between
    # means (delta_d); weights of the terms.
    node.PULL_MARGIN = 0.5
    node.PUSH_MARGIN = 1.5
    node.PULL_WEIGHT = 1.0
    node.PUSH_WEIGHT = 1.0
    node.REG_WEIGHT = 0.001
    # Weight of the seeds' loss (lambda). It grows from 0 to this over a part of the training.
    node.SEED_LOSS_WEIGHT = 0.2
    node.SEED_RAMP = 0.3333
    # A pixel is a good seed where the IoU of its mask with an object is larger.
    node.SEED_IOU = 0.5
    # GROUPING "meanshift": weight of the classes' cross-entropy.
    node.SEM_LOSS_WEIGHT = 1.0


def _add_grouping_keys(node: CfgNode) -> None:
    # "seeds": masks of diverse, confident pixels, which may overlap. "meanshift": disjoint clusters
    # of the foreground; the classifier tells each pixel's class then, not how good a seed it is.
    node.GROUPING = "seeds"
    # Similarities at which a mask may end (tau), one classifier each; a model is trained for them.
    node.SEED_THRESHS = [0.25, 0.5, 0.75, 0.9]
    # Weight of the seeds' diversity (alpha), in its logarithm.
    node.SEED_ALPHA = 0.3
    # Most seeds of an image, before duplicates are suppressed.
    node.MAX_SEEDS = 100
    # Least seediness times diversity^alpha of a seed.
    node.MIN_OBJECTIVE = 0.33
    # A mask is dropped if its IoU with a better one is larger; with True, one of the same class.
    node.NMS_THRESH = 0.5
    node.NMS_PER_CLASS = False
    # Leave out of the masks what the classifier of their threshold calls background.
    node.FG_INTERSECT = False
    # Least probability of the foreground, of pixels of "meanshift" and of FG_INTERSECT.
    node.T_FG = 0.5
    # "meanshift": distance from a cluster's centre; PULL_MARGIN of the training or more.
    node.BANDWIDTH = 0.5
    # "meanshift": fewest pixels of an object on the grid of STRIDE, and smaller ones after which it
    # gives up: an untrained network has many.
    node.MIN_SIZE = 8
    node.MAX_MISSES = 1000
    # Most objects in an image.
    node.MAX_INSTANCES = 100
    # Detections with a lower score are dropped.
    node.SCORE_THRESH = 0.05
    # "meanshift": how masks come to the original size: "bilinear", or "nearest", which keeps them
    # disjoint.
    node.MASK_RESIZE = "bilinear"


def check_metric_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check `cfg.MODEL.METRIC` for a backbone of `shapes`. Raises `ConfigError`."""
    node, section = cfg.MODEL.METRIC, "MODEL.METRIC"
    check_numbers(section, node, _LIMITS)
    find_levels(f"{section}.IN_FEATURES", node.IN_FEATURES, shapes)
    for key, choices in (
        ("NORM", NORMS),
        ("COORD_MODE", COORD_MODES),
        ("EMBED_LOSS", EMBED_LOSSES),
        ("PAIR_WEIGHT", PAIR_WEIGHTS),
        ("GROUPING", GROUPINGS),
        ("MASK_RESIZE", RESIZES),
    ):
        check_choice(f"{section}.{key}", node[key], choices)
    check_group_norm(node.NORM, {f"{section}.CONVS_DIM": node.CONVS_DIM})
    check_grid_stride(f"{section}.STRIDE", node.STRIDE, node.IN_FEATURES, shapes)
    if node.COORD_MODE != "none" and node.EMBED_DIM < 2:
        raise ConfigError(
            f"{section}.EMBED_DIM is {node.EMBED_DIM}; it must be 2 or more for a position, or set "
            f"{section}.COORD_MODE none"
        )
    _check_thresholds(node)


def _check_thresholds(node: Any) -> None:
    values = node.SEED_THRESHS
    if not values or not all(is_number(value) and 0 < value < 1 for value in values):
        raise ConfigError(
            f"MODEL.METRIC.SEED_THRESHS is {values!r}; it must be a list of similarities between 0 "
            "and 1, such as [0.25, 0.5, 0.75, 0.9]"
        )


def keep_all_pixels(cfg: CfgNode) -> None:
    """Let pixels of any probability be seeds or form objects of any size, in place."""
    node = cfg.MODEL.METRIC
    node.MIN_OBJECTIVE = node.T_FG = 0.0
    node.MIN_SIZE = 1
