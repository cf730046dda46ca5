"""Config keys of the deep watershed transform."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers, is_number
from instancezoo.modeling.levels import check_grid_stride, find_levels
from instancezoo.modeling.masks.label import RESIZES
from instancezoo.modeling.towers import NORMS, check_group_norm

SECTION = "MODEL.DWT"
SEMANTICS = ("branch", "maps")
LOSSES = ("sem_seg", "direction", "energy")
_WEIGHT = (0, 1e6)
_LIMITS = {
    "NUM_CLASSES": (1, 10**5),
    "WIDTH": (1e-3, 16),
    "DROPOUT": (0, 0.99),
    "SEM_CONVS_DIM": (1, 2**16),
    "T_FG": (0, 1),
    "CLASS_DIM": (1, 2**16),
    "BACKGROUND_CODE": (-1e6, 1e6),
    "SEM_SEG_LOSS_WEIGHT": _WEIGHT,
    "DIRECTION_LOSS_WEIGHT": _WEIGHT,
    "ENERGY_LOSS_WEIGHT": _WEIGHT,
    "GT_SEMANTICS_ITERS": (-1, inf),
    "GT_DIRECTIONS_ITERS": (-1, inf),
    "MIN_INSTANCE_AREA": (1, inf),
    "HOLE_AREA": (0, inf),
    "DILATE_EXTRA": (-1000, 1000),
    "MAX_INSTANCES": (1, inf),
    "SCORE_THRESH": (-inf, inf),
}
_LEVELS = (-1, 10**4)
# Group norm does not divide all widths.
_NORMS = [name for name in NORMS if name not in ("GN", "LN")]


def add_dwt_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.DWT`."""
    node = cfg.MODEL.setdefault("DWT", CfgNode())
    node.NUM_CLASSES = 80
    # Factor of the channels of both networks; 1 for the paper's, which are those of VGG-16.
    node.WIDTH = 1.0
    # Norm after their convolutions; "" for none, as in the paper, which starts from VGG-16.
    node.NORM = ""
    # Standard deviations of the last convolutions of the direction network's three branches, the
    # coarsest first: small, so that VGG-16 is not disturbed. [] for He's rule, to start from
    # nothing.
    node.BRANCH_STDS = [0.01, 0.001, 0.0001]
    # Share of the values of the energy network's last convolutions that training drops.
    node.DROPOUT = 0.3
    _add_semantic_keys(node)
    _add_training_keys(node)
    _add_cut_keys(node)


def _add_semantic_keys(node: CfgNode) -> None:
    # Where the class of each pixel comes from: "branch", a semantic branch on the backbone; "maps",
    # files that another model made (INPUT.SEMANTIC_MAPS), which inference reads, too.
    node.SEMANTICS = "branch"
    # "branch": maps that it is computed from, the finest first; channels and norm of its
    # convolutions; stride of its logits, that of the finest map or less.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    node.SEM_CONVS_DIM = 128
    node.SEM_NORM = "GN"
    node.SEM_STRIDE = 4
    # "branch": least probability of all classes together of a pixel that may belong to an object.
    node.T_FG = 0.5
    # "maps": value of each class in the files; all other values are background. [] for 0 to
    # NUM_CLASSES - 1.
    node.SEMANTIC_LABELS = []
    # The channel that tells the direction network the classes: a number for each, and one for the
    # background. [] for a learned embedding of CLASS_DIM channels, for any number of classes.
    node.CLASS_CODES = []
    node.BACKGROUND_CODE = -128.0
    node.CLASS_DIM = 4


def _add_training_keys(node: CfgNode) -> None:
    # What is trained: "sem_seg" (the branch), "direction", "energy". Parts without a loss are
    # frozen, but the energy's loss trains the direction network, too, unless GT_DIRECTIONS_ITERS
    # is -1. The paper trains in three runs, see the README.
    node.LOSSES = ["sem_seg", "direction", "energy"]
    # First iterations in which the direction network gets the true classes, and those in which the
    # energy network gets the true directions; predicted ones after them. -1: always the true ones.
    node.GT_SEMANTICS_ITERS = -1
    node.GT_DIRECTIONS_ITERS = 0
    # Weights of the losses.
    node.SEM_SEG_LOSS_WEIGHT = 1.0
    node.DIRECTION_LOSS_WEIGHT = 1.0
    node.ENERGY_LOSS_WEIGHT = 1.0
    # Distances to the boundary, in pixels of the network input, above which each energy level
    # starts; and the weight of each level in its loss.
    node.EDGES = [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 37, 45, 54]
    node.LEVEL_WEIGHTS = [3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    # Both networks ignore objects of fewer pixels of the network input.
    node.MIN_INSTANCE_AREA = 100


def _add_cut_keys(node: CfgNode) -> None:
    # The cut; lists have one value for each class, or a single one for all. Pixels of a level above
    # CUT_LEVELS are the insides of objects, those of fewer than MIN_SIZES pixels are dropped.
    node.CUT_LEVELS = [1]
    node.MIN_SIZES = [20]
    # Holes of fewer pixels are filled.
    node.HOLE_AREA = 64
    # Insides grow by CUT_LEVELS + DILATE_EXTRA pixels on each side. An inside at level 1 lies more
    # than 2 pixels from the boundary, so that masks are about 1 pixel too thin with 0.
    node.DILATE_EXTRA = 0
    # Numbers of the classes in the order in which they are painted, later ones over earlier ones;
    # [] for ascending numbers.
    node.PAINT_ORDER = []
    # Most objects in an image.
    node.MAX_INSTANCES = 100
    # Detections with a lower score are dropped.
    node.SCORE_THRESH = 0.05
    # How masks come to the original size: "bilinear", or "nearest", which keeps them disjoint.
    node.MASK_RESIZE = "bilinear"


def check_dwt_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check the keys for a backbone of `shapes`. Raises `ConfigError`."""
    node = cfg.MODEL.DWT
    check_numbers(SECTION, node, _LIMITS)
    check_choice(f"{SECTION}.MASK_RESIZE", node.MASK_RESIZE, RESIZES)
    check_choice(f"{SECTION}.NORM", node.NORM, _NORMS)
    check_choice(f"{SECTION}.SEMANTICS", node.SEMANTICS, SEMANTICS)
    _check_list("BRANCH_STDS", node.BRANCH_STDS, (0, 3), (0, 1e3))
    _check_training(node)
    _check_cut(node)
    _check_classes(node)
    if node.SEMANTICS == "maps":
        _check_maps(cfg)
    else:
        _check_branch(node, shapes)


def _check_training(node: Any) -> None:
    edges, weights = list(node.EDGES), list(node.LEVEL_WEIGHTS)
    _check_list("EDGES", edges, (), (0, inf))
    if len(edges) < 2 or edges[0] != 0 or edges != sorted(set(edges)):
        raise ConfigError(f"{SECTION}.EDGES is {edges}; it must start with 0 and ascend")
    _check_list("LEVEL_WEIGHTS", weights, (len(edges),), _WEIGHT)
    for name in node.LOSSES:
        check_choice(f"{SECTION}.LOSSES", name, LOSSES)
    if not node.LOSSES:
        raise ConfigError(f"{SECTION}.LOSSES is []; name one of {', '.join(LOSSES)}, or more")


def _check_cut(node: Any) -> None:
    for key, limits in (("CUT_LEVELS", _LEVELS), ("MIN_SIZES", (0, inf))):
        _check_list(key, node[key], (1, node.NUM_CLASSES), limits)
        if any(value != int(value) for value in node[key]):
            raise ConfigError(f"{SECTION}.{key} is {list(node[key])}; it must have whole numbers")
    if sorted(node.PAINT_ORDER) not in ([], list(range(node.NUM_CLASSES))):
        raise ConfigError(
            f"{SECTION}.PAINT_ORDER is {list(node.PAINT_ORDER)}; it must have each number from 0 "
            f"to {node.NUM_CLASSES - 1} once, or be []"
        )


def _check_classes(node: Any) -> None:
    for key in ("CLASS_CODES", "SEMANTIC_LABELS"):
        _check_list(key, node[key], (0, node.NUM_CLASSES), (-1e6, 1e6))
    labels = list(node.SEMANTIC_LABELS)
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{SECTION}.SEMANTIC_LABELS is {labels}; each class needs its own value")


def _check_maps(cfg: CfgNode) -> None:
    node = cfg.MODEL.DWT
    if not cfg.INPUT.SEMANTIC_INPUT:
        raise ConfigError(
            f"{SECTION}.SEMANTICS is 'maps', but INPUT.SEMANTIC_INPUT is False: set it to True, so "
            "that inference reads the maps, too"
        )
    if "sem_seg" in node.LOSSES:
        raise ConfigError(
            f"{SECTION}.LOSSES has 'sem_seg', which with {SECTION}.SEMANTICS 'maps' has nothing to "
            "train: leave it out"
        )


def _check_branch(node: Any, shapes: dict[str, ShapeSpec]) -> None:
    find_levels(f"{SECTION}.IN_FEATURES", node.IN_FEATURES, shapes)
    check_choice(f"{SECTION}.SEM_NORM", node.SEM_NORM, NORMS)
    check_group_norm(node.SEM_NORM, {f"{SECTION}.SEM_CONVS_DIM": node.SEM_CONVS_DIM})
    check_grid_stride(f"{SECTION}.SEM_STRIDE", node.SEM_STRIDE, node.IN_FEATURES, shapes)


def _check_list(
    key: str, values: Sequence[Any], lengths: tuple[int, ...], limits: tuple[float, float]
) -> None:
    low, high = limits
    fits = all(is_number(value) and low <= value <= high for value in values)
    if not fits or (lengths and len(values) not in lengths):
        wanted = " or ".join(map(str, sorted(set(lengths)))) or "some"
        raise ConfigError(
            f"{SECTION}.{key} is {list(values)}; it must have {wanted} numbers between {low:g} and "
            f"{high:g}"
        )


def keep_all_pixels(cfg: CfgNode) -> None:
    """Let pixels of any foreground probability and energy form objects of any size, in place."""
    node = cfg.MODEL.DWT
    node.T_FG = 0.0
    node.CUT_LEVELS, node.MIN_SIZES = [-1], [1]
