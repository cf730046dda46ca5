"""Config keys of SOLOv2."""

from __future__ import annotations

from typing import Any, NoReturn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError
from instancezoo.modeling.towers import check_group_norm
from instancezoo.solo.config import add_grid_keys, check_grid_config, find_levels
from instancezoo.solo.head import rearrange_strides

_WIDTHS = ("MASK_CHANNELS", "NUM_KERNELS")


def add_solov2_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SOLOV2`."""
    cfg.MODEL.SOLOV2 = type(cfg)()  # a config merges only with nodes of its own class
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
    _add_adelaidet_keys(cfg.MODEL.SOLOV2)


def _add_adelaidet_keys(node: CfgNode) -> None:
    # AdelaiDet's config files name what follows from other keys or cannot be chosen here: they are
    # read, and refused where they ask for something else. Empty or 0: what follows.
    node.FPN_INSTANCE_STRIDES = []
    node.INSTANCE_IN_CHANNELS = 0
    node.MASK_IN_CHANNELS = 0
    node.NUM_MASKS = 0
    node.USE_COORD_CONV = True
    node.NMS_TYPE = "matrix"
    node.LOSS.FOCAL_USE_SIGMOID = True


def check_solov2_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check `cfg.MODEL.SOLOV2` against a backbone that gives `shapes`. Raises `ConfigError`."""
    key, node = "MODEL.SOLOV2", cfg.MODEL.SOLOV2
    check_grid_config(key, node, shapes)
    find_mask_levels(node)
    check_group_norm(node.NORM, {f"{key}.{name}": node[name] for name in _WIDTHS})
    strides = [int(shapes[name].stride) for name in node.INSTANCE_IN_FEATURES]
    _check_adelaidet_keys(cfg, rearrange_strides(strides))


def find_mask_levels(node: CfgNode) -> list[int]:
    """Places of the mask feature's maps in the pyramid.

    Raises:
        ConfigError: they are not neighbours, the finest first.
    """
    key, names = "MODEL.SOLOV2", list(node.MASK_IN_FEATURES)
    levels = find_levels(names, node.INSTANCE_IN_FEATURES, f"{key}.MASK_IN_FEATURES")
    if not levels or levels != list(range(levels[0], levels[0] + len(levels))):
        raise ConfigError(
            f"{key}.MASK_IN_FEATURES is {names}; it must be neighbours of "
            f"{list(node.INSTANCE_IN_FEATURES)} in their order"
        )
    return levels


def _check_adelaidet_keys(cfg: CfgNode, level_strides: list[int]) -> None:
    """Refuse values of AdelaiDet's keys that the model would not follow."""
    node, in_channels = cfg.MODEL.SOLOV2, cfg.MODEL.FPN.OUT_CHANNELS
    followed = {
        "FPN_INSTANCE_STRIDES": (level_strides, "MODEL.SOLOV2.INSTANCE_IN_FEATURES"),
        "INSTANCE_IN_CHANNELS": (in_channels, "MODEL.FPN.OUT_CHANNELS"),
        "MASK_IN_CHANNELS": (in_channels, "MODEL.FPN.OUT_CHANNELS"),
        "NUM_MASKS": (node.NUM_KERNELS, "MODEL.SOLOV2.NUM_KERNELS"),
    }
    for key, (value, source) in followed.items():
        if node[key] and node[key] != value:
            _refuse(key, node[key], value, f"it follows {source}")
    if not node.USE_COORD_CONV:
        _refuse("USE_COORD_CONV", False, True, "a head without coordinates is not offered")
    if node.NMS_TYPE != "matrix":
        _refuse("NMS_TYPE", node.NMS_TYPE, "matrix", "greedy NMS of masks is not offered")
    if not node.LOSS.FOCAL_USE_SIGMOID:
        _refuse("LOSS.FOCAL_USE_SIGMOID", False, True, "the focal loss has no other form")


def _refuse(key: str, value: Any, only: Any, why: str) -> NoReturn:
    raise ConfigError(f"MODEL.SOLOV2.{key} is {value!r}, it can only be {only!r}: {why}")
