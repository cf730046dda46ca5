"""SOLOv2 (Wang et al., arXiv 2003.10152): each cell predicts the kernel that draws its mask.

Legend: N images, L levels, K classes, E embedding size, R rows, Q cells, H W stride-4 map size.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from instancezoo.layers.dynamic_conv import dynamic_conv
from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.levels import flatten_levels, level_offsets
from instancezoo.modeling.towers import (
    build_conv_block,
    build_tower,
    check_group_norm,
    init_normal,
    prior_bias,
)
from instancezoo.solo.config import tower_options
from instancezoo.solo.solo import SOLO, arguments_from_config
from instancezoo.solo.targets import CellTargets, Objects, reduce_masks

from .config import check_adelaidet_keys, find_mask_levels
from .head import MaskFeatureBranch, SOLOv2Head, SOLOv2Outputs


@META_ARCH_REGISTRY.register()
class SOLOv2(SOLO):
    """SOLO whose masks come from predicted 1x1 kernels on one unified feature map."""

    # Every (object, cell) pair has a mask term, also where objects share a cell.
    one_object_per_cell = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = arguments_from_config(cfg, "SOLOV2")
        check_adelaidet_keys(cfg, arguments["level_strides"])
        node = cfg.MODEL.SOLOV2
        widths = {f"MODEL.SOLOV2.{key}": node[key] for key in ("MASK_CHANNELS", "NUM_KERNELS")}
        check_group_norm(node.NORM, widths)
        return {**arguments, "head": cls.build_head(cfg)}

    @classmethod
    def build_head(cls, cfg: CfgNode) -> nn.Module:
        return SOLOv2Head(**cls.head_arguments(cfg))

    @classmethod
    def head_arguments(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of `SOLOv2Head`."""
        node, in_channels = cfg.MODEL.SOLOV2, cfg.MODEL.FPN.OUT_CHANNELS
        width, num_convs = node.INSTANCE_CHANNELS, node.NUM_INSTANCE_CONVS
        options = tower_options(node)
        cate_predict = Conv2d(width, node.NUM_CLASSES, kernel_size=3, padding=1)
        init_normal(cate_predict, bias=prior_bias(node.PRIOR_PROB))
        kernel_predict = Conv2d(width, node.NUM_KERNELS, kernel_size=3, padding=1)
        init_normal(kernel_predict)
        mask_levels = find_mask_levels(node)
        return {
            "cate_tower": build_tower(in_channels, width, num_convs, **options),
            "cate_predict": cate_predict,
            "kernel_tower": build_tower(in_channels + 2, width, num_convs, **options),
            "kernel_predict": kernel_predict,
            "mask_branch": _build_mask_branch(node, in_channels),
            "num_grids": node.NUM_GRIDS,
            "mask_levels": mask_levels,
        }

    def dice_of_rows(
        self, outputs: SOLOv2Outputs, objects: Objects, targets: CellTargets
    ) -> Tensor:
        kernels = flatten_levels(outputs.kernels)  # (N, cells, E)
        offsets = torch.tensor(level_offsets(self.grid.num_grids), device=kernels.device)
        cells = offsets[targets.level] + targets.cell
        masks = reduce_masks(objects, self._mask_stride(outputs, objects), self.target_resize)
        dice = []
        for index, feature in enumerate(outputs.mask_feature):
            chosen = (targets.image == index).nonzero().squeeze(1)
            probs = dynamic_conv(feature, kernels[index, cells[chosen]]).sigmoid()
            masks_of_rows = masks[targets.instance[chosen]]
            dice.append(dice_loss(probs.flatten(1), masks_of_rows.flatten(1)))
        return torch.cat(dice)

    def mask_probs(self, outputs: SOLOv2Outputs, image: int, cells: Tensor) -> Tensor:
        kernels = flatten_levels([level[image : image + 1] for level in outputs.kernels])[0]
        return dynamic_conv(outputs.mask_feature[image], kernels[cells]).sigmoid()

    def _mask_stride(self, outputs: SOLOv2Outputs, objects: Objects) -> int:
        return objects.canvas[0] // outputs.mask_feature.shape[2]


def _build_mask_branch(node: CfgNode, in_channels: int) -> MaskFeatureBranch:
    deformable = "v2" if node.DCN_IN_MASK_HEAD else ""
    num_levels = len(node.MASK_IN_FEATURES)
    levels = nn.ModuleList()
    for index in range(num_levels):
        has_coordinates = 0 < index == num_levels - 1
        levels.append(
            build_tower(
                in_channels + (2 if has_coordinates else 0),
                node.MASK_CHANNELS,
                max(index, 1),
                norm=node.NORM,
                deformable=deformable,
            )
        )
    predict = build_conv_block(
        node.MASK_CHANNELS,
        node.NUM_KERNELS,
        kernel_size=1,
        norm=node.NORM,
        deformable=deformable,
    )
    return MaskFeatureBranch(levels=levels, predict=predict)
