"""SOLOv2 (Wang et al., arXiv 2003.10152): each cell predicts the kernel that makes its mask.

Targets, losses and inference are SOLO's; masks are `KernelMasks`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.solo.solo import SOLO, read_grid_arguments

from .config import check_solov2_config
from .head import SOLOv2Head, build_head_parts


@META_ARCH_REGISTRY.register()
class SOLOv2(SOLO):
    """SOLO whose masks come from predicted 1x1 kernels on one unified feature map."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**read_solov2_arguments(cfg), "head": SOLOv2Head(**build_head_parts(cfg))}


def read_solov2_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `SOLOv2` except the head, from `cfg.MODEL.SOLOV2`. Raises `ConfigError`."""
    arguments = DenseSegmenter.from_config(cfg)
    shapes = arguments["backbone"].output_shape()
    check_solov2_config(cfg, shapes)
    arguments.update(read_grid_arguments(cfg.MODEL.SOLOV2, shapes))
    # Every (object, cell) pair has a mask loss, also where objects share a cell.
    return {**arguments, "grid": replace(arguments["grid"], one_object_per_cell=False)}
