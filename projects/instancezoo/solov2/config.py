"""Config keys of SOLOv2."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError
from instancezoo.modeling.ignored_keys import IgnoredKey, add_ignored_keys, check_ignored_keys
from instancezoo.modeling.levels import find_levels
from instancezoo.modeling.towers import check_group_norm
from instancezoo.solo.config import add_grid_keys, check_grid_config
from instancezoo.solo.head import rearrange_strides

# Keys of AdelaiDet's config files that follow from other keys here, or have a single valid value.
IGNORED_KEYS = {
    "FPN_INSTANCE_STRIDES": IgnoredKey([], "it follows MODEL.SOLOV2.INSTANCE_IN_FEATURES"),
    "INSTANCE_IN_CHANNELS": IgnoredKey(0, "it follows MODEL.FPN.OUT_CHANNELS"),
    "MASK_IN_CHANNELS": IgnoredKey(0, "it follows MODEL.FPN.OUT_CHANNELS"),
    "NUM_MASKS": IgnoredKey(0, "it follows MODEL.SOLOV2.NUM_KERNELS"),
    "USE_COORD_CONV": IgnoredKey(True, "a head without coordinates is not offered"),
    "NMS_TYPE": IgnoredKey("matrix", "greedy NMS of masks is not offered"),
    "LOSS.FOCAL_USE_SIGMOID": IgnoredKey(True, "the focal loss has no other form"),
}


def add_solov2_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SOLOV2`."""
    cfg.MODEL.setdefault("SOLOV2", CfgNode())
    add_grid_keys(cfg.MODEL.SOLOV2)
    # Channels and number of the convolutions in the category and kernel towers.
    cfg.MODEL.SOLOV2.INSTANCE_CHANNELS = 512
    cfg.MODEL.SOLOV2.NUM_INSTANCE_CONVS = 4
    # E: size of a predicted 1x1 kernel and channels of the unified mask feature.
    cfg.MODEL.SOLOV2.NUM_KERNELS = 256
    # Feature maps summed in the mask feature, finest first; the last one gets coordinates.
    cfg.MODEL.SOLOV2.MASK_IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels of the mask feature branch.
    cfg.MODEL.SOLOV2.MASK_CHANNELS = 128
    # Deformable convolutions (version 2) in the mask feature branch.
    cfg.MODEL.SOLOV2.DCN_IN_MASK_HEAD = False
    add_ignored_keys(cfg.MODEL.SOLOV2, IGNORED_KEYS)


def check_solov2_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check `cfg.MODEL.SOLOV2`, see `check_grid_config`."""
    key, node = "MODEL.SOLOV2", cfg.MODEL.SOLOV2
    check_grid_config(key, node, shapes)
    find_mask_levels(node)
    widths = ("MASK_CHANNELS", "NUM_KERNELS")
    check_group_norm(node.NORM, {f"{key}.{name}": node[name] for name in widths})
    followed = {
        "FPN_INSTANCE_STRIDES": rearrange_strides(node.INSTANCE_IN_FEATURES, shapes),
        "INSTANCE_IN_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS,
        "MASK_IN_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS,
        "NUM_MASKS": node.NUM_KERNELS,
    }
    check_ignored_keys(key, node, IGNORED_KEYS, followed)


def find_mask_levels(node: CfgNode) -> list[int]:
    """Indices of the mask feature's maps in the pyramid.

    Raises:
        ConfigError: they are not neighbours, the finest first.
    """
    key, names, pyramid = "MODEL.SOLOV2", list(node.MASK_IN_FEATURES), node.INSTANCE_IN_FEATURES
    levels = find_levels(f"{key}.MASK_IN_FEATURES", names, pyramid, f"{key}.INSTANCE_IN_FEATURES")
    if levels != list(range(levels[0], levels[0] + len(levels))):
        raise ConfigError(
            f"{key}.MASK_IN_FEATURES is {names}; it must be neighbours of {list(pyramid)} in "
            "their order"
        )
    return levels
