"""Config keys of SSAP."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers, is_number
from instancezoo.modeling.levels import check_pyramid
from instancezoo.modeling.masks.label import RESIZES
from instancezoo.modeling.towers import NORMS, check_group_norm

from .cascade import PARTITIONS

_SECTION = "MODEL.SSAP"
_MAX_WEIGHT = 1e6
_LIMITS = {
    "NUM_CLASSES": (1, 10**5),
    "WINDOW": (3, 15),
    "CONVS_DIM": (1, 2**16),
    "NUM_CONVS": (0, 100),
    "POSITIVE_DROP": (0, 1),
    "OBJECT_WEIGHT": (0, _MAX_WEIGHT),
    "FG_MARGIN": (-1, 1),
    "MIN_SIZE": (1, inf),
    "MAX_INSTANCES": (1, inf),
    "SCORE_THRESH": (-inf, inf),
}


def add_ssap_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SSAP`."""
    node = cfg.MODEL.setdefault("SSAP", CfgNode())
    node.NUM_CLASSES = 80
    # Maps with both branches, finest first; each of twice the stride of the one before.
    node.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    # Side r of the window in cells, odd: affinities of a cell to r x r cells around it.
    node.WINDOW = 5
    # Channels, number and norm of the 3x3 convolutions of each branch.
    node.CONVS_DIM = 256
    node.NUM_CONVS = 2
    node.NORM = "GN"
    # Weights of the classes' cross-entropy and of the affinities' squared error (lambda), one a
    # level, finest first. On small images the coarse levels have only a few cells; the small
    # configs lower their weights.
    node.SEM_LOSS_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0]
    node.AFFINITY_LOSS_WEIGHTS = [0.01, 0.03, 0.1, 0.3, 1.0]
    # Share of the pairs of cells of one object, or both of the background, that the loss of the
    # affinities leaves out at random: most pairs are such. It lowers uncertain affinities.
    node.POSITIVE_DROP = 0.8
    # Weight of the pairs of a cell on an object in this loss; those of other cells weigh 1.
    node.OBJECT_WEIGHT = 3.0
    # If True, graphs are partitioned from the coarsest level to the finest; if False, only that of
    # the finest level is: slower.
    node.CASCADE = True
    # "gaec": greedy additive edge contraction. "mutex": mutex watershed on the same edges.
    node.PARTITION = "gaec"
    # A cell is foreground if its best class has a probability of more than the background's plus
    # this. At 0 it is the most probable class that counts; raise it if segments reach too far.
    node.FG_MARGIN = 0.0
    # Fewest cells of an object on the finest level.
    node.MIN_SIZE = 5
    # Most objects in an image.
    node.MAX_INSTANCES = 100
    # Detections with a lower score are dropped.
    node.SCORE_THRESH = 0.05
    # How masks come to the original size: "bilinear", or "nearest", which keeps them disjoint.
    node.MASK_RESIZE = "bilinear"


def check_ssap_config(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Refuse values that SSAP cannot work with.

    Args:
        cfg: the whole config.
        shapes: outputs of the backbone.

    Raises:
        ConfigError: with the key and what it may be.
    """
    node = cfg.MODEL.SSAP
    check_numbers(_SECTION, node, _LIMITS)
    check_pyramid(f"{_SECTION}.IN_FEATURES", node.IN_FEATURES, shapes)
    if node.WINDOW % 2 == 0:
        raise ConfigError(f"{_SECTION}.WINDOW is {node.WINDOW}; it must be odd")
    check_choice(f"{_SECTION}.NORM", node.NORM, NORMS)
    check_group_norm(node.NORM, {f"{_SECTION}.CONVS_DIM": node.CONVS_DIM})
    check_choice(f"{_SECTION}.PARTITION", node.PARTITION, PARTITIONS)
    check_choice(f"{_SECTION}.MASK_RESIZE", node.MASK_RESIZE, RESIZES)
    for key in ("SEM_LOSS_WEIGHTS", "AFFINITY_LOSS_WEIGHTS"):
        _check_weights(f"{_SECTION}.{key}", list(node[key]), node.IN_FEATURES)


def _check_weights(key: str, weights: list[float], levels: list[str]) -> None:
    are_numbers = all(is_number(weight) and 0 <= weight <= _MAX_WEIGHT for weight in weights)
    if len(weights) != len(levels) or not are_numbers:
        raise ConfigError(
            f"{key} is {weights}; it must be {len(levels)} numbers of 0 to {_MAX_WEIGHT:g}, one "
            f"for each of {', '.join(levels)}"
        )


def keep_all_cells(cfg: CfgNode) -> None:
    """Let cells of any foreground probability form objects of any size, in place."""
    cfg.MODEL.SSAP.FG_MARGIN = -1.0
    cfg.MODEL.SSAP.MIN_SIZE = 1
