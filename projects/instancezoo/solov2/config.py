"""Config keys of SOLOv2."""

from __future__ import annotations

from detectron2.config import CfgNode

from instancezoo.solo.config import add_grid_keys


def add_solov2_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.SOLOV2`."""
    cfg.MODEL.SOLOV2 = type(cfg)()  # a config merges only with nodes of its own class
    add_grid_keys(cfg.MODEL.SOLOV2)
    cfg.MODEL.SOLOV2.INSTANCE_CHANNELS = 512
    cfg.MODEL.SOLOV2.NUM_INSTANCE_CONVS = 4
    # E: numbers in a predicted 1x1 kernel, channels of the unified mask feature.
    cfg.MODEL.SOLOV2.NUM_KERNELS = 256
    # Levels summed in the mask feature; the last one gets coordinates.
    cfg.MODEL.SOLOV2.MASK_IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.SOLOV2.MASK_CHANNELS = 128
    # Every convolution of the mask feature branch is deformable, of version 2 in all models.
    cfg.MODEL.SOLOV2.DCN_IN_MASK_HEAD = False
