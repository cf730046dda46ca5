"""SOLO and Decoupled SOLO (Wang et al., arXiv 1912.04488): a grid cell predicts the object whose
centre lies in it.

Legend: N images, S grid side, K classes, R rows (one object, one cell).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.losses import class_focal_loss, zero_of_parameters
from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.modeling.levels import flatten_levels
from instancezoo.modeling.masks import ImageMasks, remove_padding

from .config import check_solo_config
from .decode import DecodeSettings, compute_cell_probs, rank_candidates, select_detections
from .head import build_decoupled_head, build_solo_head, rearrange_strides
from .masks import GridOutputs
from .targets import CellTargets, GridObjects, GridSpec, assign_cells, gather_objects


class GridTargets(NamedTuple):
    """Training targets of a batch."""

    objects: GridObjects
    cells: CellTargets


@META_ARCH_REGISTRY.register()
class SOLO(DenseSegmenter[GridOutputs, GridTargets]):
    """Segmenting Objects by Locations; the head chooses the mask representation.

    Args:
        grid: which cells predict which objects.
        level_strides: stride of each of the head's levels.
        num_classes: K.
        decode_settings: thresholds of inference.
        target_resize: see `reduce_masks`.
        focal_alpha, focal_gamma, focal_weight: of the category loss.
        dice_weight: lambda, of the mask loss.
        kwargs: those of `DenseSegmenter`.
    """

    cell_strides: Tensor  # (cells of all levels,)

    @configurable
    def __init__(
        self,
        *,
        grid: GridSpec,
        level_strides: list[int],
        num_classes: int,
        decode_settings: DecodeSettings,
        target_resize: str = "padded",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        focal_weight: float = 1.0,
        dice_weight: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.level_strides = level_strides
        self.num_classes = num_classes
        self.decode_settings = decode_settings
        self.target_resize = target_resize
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.focal_weight, self.dice_weight = focal_weight, dice_weight
        levels = zip(level_strides, grid.num_grids, strict=True)
        strides = [stride for stride, side in levels for _ in range(side * side)]
        self.register_buffer("cell_strides", torch.tensor(strides), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**read_solo_arguments(cfg), "head": build_solo_head(cfg)}

    def assign(
        self, outputs: GridOutputs, images: ImageList, ground_truth: list[Instances]
    ) -> GridTargets:
        """Positive cells, and the objects whose masks they predict (section 3.3.1)."""
        # parity: the grid covers the padded batch, so a neighbour's size can move an object's cell.
        height, width = images.tensor.shape[2:]
        objects = gather_objects(ground_truth, (height, width), self.target_resize)
        return GridTargets(objects, assign_cells(objects, self.grid, num_classes=self.num_classes))

    def losses(self, outputs: GridOutputs, targets: GridTargets) -> dict[str, Tensor]:
        """`loss_ins` (equation 3) and `loss_cate` (equation 2's focal loss)."""
        dice = outputs.masks.dice(targets.objects, targets.cells)  # (R,)
        # A level or a batch without positives must still reach all parameters of the head.
        mask_loss = dice.sum() / max(len(dice), 1) + zero_of_parameters(self.head)
        category_loss = class_focal_loss(
            flatten_levels(outputs.cls_logits),  # (N, cells, K)
            targets.cells.classes,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        ) / (targets.cells.num_positive + 1)
        return {
            "loss_ins": self.dice_weight * mask_loss,
            "loss_cate": self.focal_weight * category_loss,
        }

    def decode(self, outputs: GridOutputs, images: ImageList) -> list[Instances]:
        """Detections after Matrix NMS, with masks on the stride-4 map (section 3.3.3)."""
        height, width = images.tensor.shape[2:]
        probs, settings = compute_cell_probs(outputs.cls_logits), self.decode_settings
        results = []
        for index, image_size in enumerate(images.image_sizes):
            candidates = rank_candidates(
                probs[index], self.cell_strides, outputs.masks, index, settings
            )
            scores, classes, masks = select_detections(candidates, outputs.masks, index, settings)
            steps = remove_padding((height, width), image_size)
            results.append(
                Instances(
                    image_size,
                    scores=scores,
                    pred_classes=classes,
                    pred_masks=ImageMasks(masks, steps, settings.mask_thresh),
                )
            )
        return results


@META_ARCH_REGISTRY.register()
class DecoupledSOLO(SOLO):
    """SOLO whose masks are products of a column's and a row's channel (section 3.4)."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**read_solo_arguments(cfg), "head": build_decoupled_head(cfg)}


def read_solo_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `SOLO` except the head, from `cfg.MODEL.SOLO`. Raises `ConfigError`."""
    arguments = DenseSegmenter.from_config(cfg)
    shapes = arguments["backbone"].output_shape()
    check_solo_config(cfg, shapes)
    return {**arguments, **read_grid_arguments(cfg.MODEL.SOLO, shapes)}


def read_grid_arguments(node: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
    """What `SOLO` needs from a node with the keys of `add_grid_keys`; `shapes` of the backbone."""
    return {
        "in_features": node.INSTANCE_IN_FEATURES,
        "keep_empty_masks": node.KEEP_EMPTY_MASKS,
        "grid": GridSpec(node.NUM_GRIDS, node.FPN_SCALE_RANGES, node.SIGMA),
        "level_strides": rearrange_strides(node.INSTANCE_IN_FEATURES, shapes),
        "num_classes": node.NUM_CLASSES,
        "decode_settings": DecodeSettings(
            score_thresh=node.SCORE_THR,
            mask_thresh=node.MASK_THR,
            num_candidates=node.NMS_PRE,
            nms_kernel=node.NMS_KERNEL,
            nms_sigma=node.NMS_SIGMA,
            update_thresh=node.UPDATE_THR,
            max_per_image=node.MAX_PER_IMG,
        ),
        "target_resize": node.TARGET_RESIZE,
        "focal_alpha": node.LOSS.FOCAL_ALPHA,
        "focal_gamma": node.LOSS.FOCAL_GAMMA,
        "focal_weight": node.LOSS.FOCAL_WEIGHT,
        "dice_weight": node.LOSS.DICE_WEIGHT,
    }
