"""Config keys of semi-convolutional embeddings."""

from __future__ import annotations

from math import inf
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.layers.semiconv import COORD_MODES, KERNELS, REDUCTIONS, SEEDS
from instancezoo.modeling.levels import check_grid_stride, check_pyramid, find_levels
from instancezoo.modeling.masks.label import RESIZES
from instancezoo.modeling.towers import NORMS, check_group_norm

GROUPINGS = ("greedy", "kmeans", "votes")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool")
MASK_HEAD = "SemiConvMaskHead"
_WEIGHT = (0, 1e6)
# Keys that both uses read.
_LIMITS = {
    "EMBED_DIM": (2, 4096),
    "COORD_UNIT": (1e-3, 1e6),
    "SIGMA_INIT": (1e-3, 1e3),
    "EMBED_LOSS_WEIGHT": _WEIGHT,
    "KERNEL_LOSS_WEIGHT": _WEIGHT,
}
_HEAD_LIMITS = {"HIDDEN_DIM": (1, 2**16), "GRAD_SCALE": (0, 1)}
_SEGMENTOR_LIMITS = {
    "NUM_CLASSES": (1, 10**5),
    "CONVS_DIM": (1, 2**16),
    "SEM_LOSS_WEIGHT": _WEIGHT,
    "PUSH_LOSS_WEIGHT": _WEIGHT,
    "PUSH_MARGIN": (0, 1e6),
    "T_FG": (0, 1),
    "T_SEED": (0, 1),
    "T_MEMBER": (1e-6, 1),
    "N_SHIFT": (0, 100),
    "MIN_SIZE": (1, inf),
    "MAX_MISSES": (1, inf),
    "MAX_INSTANCES": (1, inf),
    "VOTE_WINDOW": (1, 999),
    "VOTE_MIN": (1, inf),
}


def add_semiconv_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SEMICONV`: keys of both uses, then those of each."""
    node = cfg.MODEL.setdefault("SEMICONV", CfgNode())
    # Maps that the embedding is computed from, the finest first.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels of the embedding (D). The first two are geometric, the others tell appearances apart.
    node.EMBED_DIM = 8
    # What is added to the first two: "image", the position in the network input, COORD_UNIT pixels
    # are 1; "index", column and row of the map; "none", nothing: an ordinary convolution, which
    # cannot separate identical objects. The unit is about the radius of small objects: sigma
    # starts at one unit.
    node.COORD_MODE = "image"
    node.COORD_UNIT = 64.0
    # Similarity of two embeddings: "laplacian" exp(-d / sigma), "gaussian" exp(-d^2 / 2 sigma^2).
    node.KERNEL = "laplacian"
    # Bandwidth sigma that training starts from, in units of the coordinates.
    node.SIGMA_INIT = 1.0
    # Distance of the pixels of an object from their mean: weight, and "mean" over objects or "sum",
    # as the paper prints it.
    node.EMBED_LOSS_WEIGHT = 1.0
    node.EMBED_LOSS_REDUCE = "mean"
    # Cross-entropy between kernel and mask. At 0 sigma stays as it is with SemiConvSegmentor.
    node.KERNEL_LOSS_WEIGHT = 1.0
    _add_head_keys(node)
    _add_segmentor_keys(node)


def _add_head_keys(node: CfgNode) -> None:
    """Keys of MODEL.ROI_HEADS.NAME "SemiConvROIHeads"."""
    # Channels of the hidden layer of the embedding.
    node.HIDDEN_DIM = 256
    # Factor of the gradient that the embedding sends to the backbone; RPN suffers from a large one.
    node.GRAD_SCALE = 0.1
    # Embedding of a region's object: "soft", expected over the mask, or "hard", at its best cell.
    node.SEED = "soft"


def _add_segmentor_keys(node: CfgNode) -> None:
    """Keys of MODEL.META_ARCHITECTURE "SemiConvSegmentor"."""
    node.NUM_CLASSES = 80
    # Stride in pixels of the maps on which pixels are grouped; that of the finest map or less.
    node.STRIDE = 4
    # Channels and norm of the convolutions of both branches.
    node.CONVS_DIM = 128
    node.NORM = "GN"
    # Weight of the classes' cross-entropy.
    node.SEM_LOSS_WEIGHT = 1.0
    # Weight of a loss that pushes mean embeddings of objects apart up to twice PUSH_MARGIN; the
    # paper needs none.
    node.PUSH_LOSS_WEIGHT = 0.0
    node.PUSH_MARGIN = 1.5
    # "greedy": objects grow from seeds, one after the other. "kmeans": k-means from what "greedy"
    # finds. "votes": most frequent geometric embeddings; for sets whose objects look alike.
    node.GROUPING = "greedy"
    # Least probability of the foreground: of pixels, and of seeds.
    node.T_FG = 0.5
    node.T_SEED = 0.6
    # Least similarity to an object's centre of its pixels.
    node.T_MEMBER = 0.5
    # Steps of mean shift from the seed to the centre.
    node.N_SHIFT = 3
    # Fewest pixels of an object, on the grid of STRIDE.
    node.MIN_SIZE = 8
    # Most objects in an image.
    node.MAX_INSTANCES = 100
    # Objects smaller than MIN_SIZE after which "greedy" gives up: an untrained network has many.
    node.MAX_MISSES = 1000
    # "votes": side in cells of the square in which a centre has most votes, odd; fewest votes.
    node.VOTE_WINDOW = 5
    node.VOTE_MIN = 8
    # Detections with a lower score are dropped.
    node.SCORE_THRESH = 0.05
    # How masks come to the original size: "bilinear", or "nearest", which keeps them disjoint.
    node.MASK_RESIZE = "bilinear"


def check_roi_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check the keys of `SemiConvROIHeads` for feature maps of `shapes`. Raises `ConfigError`."""
    _check_shared(cfg.MODEL.SEMICONV, shapes)
    check_numbers("MODEL.SEMICONV", cfg.MODEL.SEMICONV, _HEAD_LIMITS)
    check_choice("MODEL.SEMICONV.SEED", cfg.MODEL.SEMICONV.SEED, SEEDS)
    check_pyramid("MODEL.SEMICONV.IN_FEATURES", cfg.MODEL.SEMICONV.IN_FEATURES, shapes)
    name = cfg.MODEL.ROI_MASK_HEAD.NAME
    if cfg.MODEL.MASK_ON and name != MASK_HEAD:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.NAME is {name!r}; with MODEL.ROI_HEADS.NAME 'SemiConvROIHeads' "
            f"it must be '{MASK_HEAD}'"
        )
    check_choice("MODEL.ROI_MASK_HEAD.POOLER_TYPE", cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE, _POOLERS)


def check_segmentor_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check the keys of `SemiConvSegmentor` for a backbone of `shapes`. Raises `ConfigError`."""
    node = cfg.MODEL.SEMICONV
    _check_shared(node, shapes)
    check_numbers("MODEL.SEMICONV", node, _SEGMENTOR_LIMITS)
    check_choice("MODEL.SEMICONV.GROUPING", node.GROUPING, GROUPINGS)
    check_choice("MODEL.SEMICONV.MASK_RESIZE", node.MASK_RESIZE, RESIZES)
    check_choice("MODEL.SEMICONV.NORM", node.NORM, NORMS)
    check_group_norm(node.NORM, {"MODEL.SEMICONV.CONVS_DIM": node.CONVS_DIM})
    check_grid_stride("MODEL.SEMICONV.STRIDE", node.STRIDE, node.IN_FEATURES, shapes)
    if node.VOTE_WINDOW % 2 == 0:
        raise ConfigError(f"MODEL.SEMICONV.VOTE_WINDOW is {node.VOTE_WINDOW}; it must be odd")


def _check_shared(node: Any, shapes: dict[str, ShapeSpec]) -> None:
    check_numbers("MODEL.SEMICONV", node, _LIMITS)
    find_levels("MODEL.SEMICONV.IN_FEATURES", node.IN_FEATURES, shapes)
    check_choice("MODEL.SEMICONV.COORD_MODE", node.COORD_MODE, COORD_MODES)
    check_choice("MODEL.SEMICONV.KERNEL", node.KERNEL, KERNELS)
    check_choice("MODEL.SEMICONV.EMBED_LOSS_REDUCE", node.EMBED_LOSS_REDUCE, REDUCTIONS)


def keep_all_pixels(cfg: CfgNode) -> None:
    """Let pixels of any foreground probability form objects of any size, in place."""
    node = cfg.MODEL.SEMICONV
    node.T_FG = node.T_SEED = 0.0
    node.MIN_SIZE = node.VOTE_MIN = 1
