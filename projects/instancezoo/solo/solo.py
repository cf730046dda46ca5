"""SOLO and Decoupled SOLO (Wang et al., arXiv 1912.04488): a grid cell answers for an object.

Legend: N images, L levels, S grid side, K classes, R rows, Q cells, H W map size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.errors import ConfigError
from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.dense import DenseSegmenter
from instancezoo.modeling.levels import flatten_levels, level_offsets
from instancezoo.modeling.masks import ImageMasks, remove_padding
from instancezoo.modeling.towers import build_tower, init_normal, prior_bias

from .config import check_grid_keys, find_levels, tower_options
from .decode import DecodeSettings, compute_cell_probs, rank_candidates, select_detections
from .head import (
    CategoryBranch,
    DecoupledSOLOHead,
    SOLOHead,
    rearrange_strides,
    resize_map,
)
from .targets import CellTargets, GridSpec, Objects, assign_cells, gather_objects, reduce_masks


@META_ARCH_REGISTRY.register()
class SOLO(DenseSegmenter):
    """Segmenting Objects by Locations; each cell has a mask channel of its own.

    Args:
        grid: which cells answer for which objects.
        level_strides: stride of each of the head's levels.
        num_classes: K.
        decode: thresholds of inference.
        target_resize: see `reduce_masks`.
        focal_alpha, focal_gamma, focal_weight: of the category loss.
        dice_weight: of the mask loss.
        kwargs: those of `DenseSegmenter`.
    """

    # Of several objects that claim one cell the last keeps its mask (SOLOv2: all do).
    one_object_per_cell = True

    head: Any
    cell_strides: Tensor  # (cells of all levels,)

    @configurable
    def __init__(
        self,
        *,
        grid: GridSpec,
        level_strides: list[int],
        num_classes: int,
        decode: DecodeSettings,
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
        self.decode = decode
        self.target_resize = target_resize
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.focal_weight, self.dice_weight = focal_weight, dice_weight
        strides = [
            stride
            for stride, side in zip(level_strides, grid.num_grids, strict=True)
            for _ in range(side * side)
        ]
        self.register_buffer("cell_strides", torch.tensor(strides), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **arguments_from_config(cfg, "SOLO"),
            "head": cls.build_head(cfg),
        }

    @classmethod
    def build_head(cls, cfg: CfgNode) -> nn.Module:
        """The network behind the pyramid."""
        node, in_channels = cfg.MODEL.SOLO, cfg.MODEL.FPN.OUT_CHANNELS
        predict = nn.ModuleList(
            _build_prediction(node, side * side, kernel_size=1) for side in node.NUM_GRIDS
        )
        return SOLOHead(
            cate_branch=_build_category_branch(node, in_channels),
            mask_tower=_build_tower(node, in_channels + 2),
            mask_predict=predict,
        )

    def losses(
        self, outputs: Any, images: ImageList, ground_truth: list[Instances]
    ) -> dict[str, Tensor]:
        """`loss_ins` (equation 3) and `loss_cate` (equation 2's focal loss)."""
        # parity: the grid covers the padded batch, so a neighbour's size can move an object's cell.
        objects = gather_objects(ground_truth, tuple(images.tensor.shape[2:]))
        return self.compare(outputs, objects, self.assign(objects))

    def compare(self, outputs: Any, objects: Objects, targets: CellTargets) -> dict[str, Tensor]:
        """The losses of outputs against targets."""
        return {
            "loss_ins": self.dice_weight * self._mask_loss(outputs, objects, targets),
            "loss_cate": self.focal_weight * self._category_loss(outputs, targets),
        }

    def assign(self, objects: Objects) -> CellTargets:
        """Positive cells of a batch."""
        return assign_cells(
            objects,
            self.grid,
            num_classes=self.num_classes,
            one_object_per_cell=self.one_object_per_cell,
        )

    def dice_of_rows(self, outputs: Any, objects: Objects, targets: CellTargets) -> Tensor:
        """Dice loss of every row, (R,)."""
        # Mask maps are twice as large as the level's features.
        strides = [stride // 2 for stride in self.level_strides]
        reduced = {s: reduce_masks(objects, s, self.target_resize) for s in set(strides)}
        dice = []
        for level, stride in enumerate(strides):
            chosen = (targets.level == level).nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            probs = self.level_probs(outputs, level, targets.image[chosen], targets.cell[chosen])
            masks = reduced[stride][targets.instance[chosen]]
            dice.append(dice_loss(probs.flatten(1), masks.flatten(1)))
        return torch.cat(dice) if dice else targets.image.new_zeros(0, dtype=torch.float32)

    def level_probs(self, outputs: Any, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """Mask probabilities of cells at the level's own resolution.

        Args:
            outputs: of the head.
            level: its index.
            image, cell: (n,) long, `cell` within the level.

        Returns:
            (n, 2H, 2W) fp32.
        """
        cells, owner = cell.unique(return_inverse=True)
        logits = self.head.predict_masks(outputs.mask_features[level], level, cells)
        return logits[image, owner].float().sigmoid()

    def _mask_loss(self, outputs: Any, objects: Objects, targets: CellTargets) -> Tensor:
        dice = self.dice_of_rows(outputs, objects, targets)
        # A level or a batch without positives must still reach all parameters of the head.
        connection = 0.0 * sum(parameter.sum() for parameter in self.head.parameters())
        return dice.sum() / max(len(dice), 1) + connection

    def _category_loss(self, outputs: Any, targets: CellTargets) -> Tensor:
        logits = flatten_levels(outputs.cate_logits).float()  # (N, cells, K)
        one_hot = F.one_hot(targets.classes, self.num_classes + 1)[..., :-1].to(logits.dtype)
        total = sigmoid_focal_loss(
            logits, one_hot, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
        )
        return total / (targets.num_positive + 1)

    def inference(self, outputs: Any, images: ImageList) -> list[Instances]:
        """See `DenseSegmenter.inference`."""
        padded_size = tuple(images.tensor.shape[2:])
        probs = compute_cell_probs(outputs.cate_logits)
        results = []
        for index, image_size in enumerate(images.image_sizes):

            def mask_probs(cells: Tensor, index: int = index) -> Tensor:
                return self.mask_probs(outputs, index, cells)

            steps = remove_padding(padded_size, image_size)
            ranked = rank_candidates(probs[index], self.cell_strides, mask_probs, self.decode)
            scores, classes, masks = select_detections(ranked, mask_probs, self.decode)
            results.append(
                Instances(
                    image_size,
                    scores=scores,
                    pred_classes=classes,
                    pred_masks=ImageMasks(masks, steps, self.decode.mask_thr),
                )
            )
        return results

    def mask_probs(self, outputs: Any, image: int, cells: Tensor) -> Tensor:
        """Mask probabilities of one image's cells on the common stride-4 map.

        Args:
            outputs: of the head.
            image: index in the batch.
            cells: (Q,) long, ascending, indices over all levels.

        Returns:
            (Q, H, W) fp32.
        """
        offsets = level_offsets(self.grid.num_grids)
        size = self.common_size(outputs)
        probs = []
        for level, (start, stop) in enumerate(pairwise(offsets)):
            cell = cells[(cells >= start) & (cells < stop)] - start
            if len(cell):
                probs.append(self.resized_level_probs(outputs, level, image, cell, size))
        empty = torch.zeros((0, *size), device=cells.device)
        return torch.cat(probs) if probs else empty

    def common_size(self, outputs: Any) -> tuple[int, int]:
        """Height and width of the stride-4 map."""
        height, width = outputs.mask_features[0].shape[2:]
        return height, width

    def resized_level_probs(
        self, outputs: Any, level: int, image: int, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Probabilities of one image's cells of a level at the common size, (n, H, W) fp32."""
        features = outputs.mask_features[level][image : image + 1]
        logits = self.head.predict_masks(features, level, cell)
        return resize_map(logits.float().sigmoid(), size)[0]


@META_ARCH_REGISTRY.register()
class DecoupledSOLO(SOLO):
    """A mask is the product of one channel for its grid column and one for its grid row."""

    @classmethod
    def build_head(cls, cfg: CfgNode) -> nn.Module:
        node, in_channels = cfg.MODEL.SOLO, cfg.MODEL.FPN.OUT_CHANNELS
        axes = ["xy"] if node.SHARED_MASK_TOWER else ["x", "y"]
        towers = {name: _build_tower(node, in_channels + len(name)) for name in axes}
        predict_x, predict_y = (
            nn.ModuleList(_build_prediction(node, side, kernel_size=3) for side in node.NUM_GRIDS)
            for _ in "xy"
        )
        return DecoupledSOLOHead(
            cate_branch=_build_category_branch(node, in_channels),
            mask_towers=nn.ModuleDict(towers),
            predict_x=predict_x,
            predict_y=predict_y,
        )

    def level_probs(self, outputs: Any, level: int, image: Tensor, cell: Tensor) -> Tensor:
        side = self.grid.num_grids[level]
        x_probs = outputs.x_logits[level][image, cell % side].float().sigmoid()
        y_probs = outputs.y_logits[level][image, cell // side].float().sigmoid()
        return x_probs * y_probs

    def common_size(self, outputs: Any) -> tuple[int, int]:
        height, width = outputs.x_logits[0].shape[2:]
        return height, width

    def resized_level_probs(
        self, outputs: Any, level: int, image: int, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        side = self.grid.num_grids[level]
        columns, column = (cell % side).unique(return_inverse=True)
        rows, row = (cell // side).unique(return_inverse=True)
        x_logits, y_logits = outputs.x_logits[level][image], outputs.y_logits[level][image]
        # The two are resized before they are multiplied, as the official code does.
        x_probs = resize_map(x_logits[columns].float().sigmoid()[None], size)[0]
        y_probs = resize_map(y_logits[rows].float().sigmoid()[None], size)[0]
        return x_probs[column] * y_probs[row]


def arguments_from_config(cfg: CfgNode, name: str) -> dict[str, Any]:
    """Arguments of `SOLO`, but for the head, from the node "SOLO" or "SOLOV2" of `cfg.MODEL`."""
    key, node = f"MODEL.{name}", cfg.MODEL[name]
    check_grid_keys(key, node)
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    find_levels(node.INSTANCE_IN_FEATURES, list(shapes), f"{key}.INSTANCE_IN_FEATURES")
    strides = [int(shapes[name].stride) for name in node.INSTANCE_IN_FEATURES]
    if strides != sorted(set(strides)):
        raise ConfigError(
            f"{key}.INSTANCE_IN_FEATURES is {node.INSTANCE_IN_FEATURES}; it must name each map "
            "once, the finest first"
        )
    counts = {
        "INSTANCE_IN_FEATURES": len(strides),
        "NUM_GRIDS": len(node.NUM_GRIDS),
        "FPN_SCALE_RANGES": len(node.FPN_SCALE_RANGES),
    }
    if len(set(counts.values())) != 1 or len(strides) < 2:
        raise ConfigError(
            f"these keys of {key} must name equally many levels, two at least; their lengths are "
            f"{counts}"
        )
    return {
        "backbone": backbone,
        "in_features": list(node.INSTANCE_IN_FEATURES),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "mask_output": cfg.MODEL.MASK_OUTPUT,
        "keep_empty_masks": node.KEEP_EMPTY_MASKS,
        "grid": GridSpec(list(node.NUM_GRIDS), list(node.FPN_SCALE_RANGES), node.SIGMA),
        "level_strides": rearrange_strides(strides),
        "num_classes": node.NUM_CLASSES,
        "decode": DecodeSettings(
            score_thr=node.SCORE_THR,
            mask_thr=node.MASK_THR,
            nms_pre=node.NMS_PRE,
            nms_kernel=node.NMS_KERNEL,
            nms_sigma=node.NMS_SIGMA,
            update_thr=node.UPDATE_THR,
            max_per_img=node.MAX_PER_IMG,
        ),
        "target_resize": node.TARGET_RESIZE,
        "focal_alpha": node.LOSS.FOCAL_ALPHA,
        "focal_gamma": node.LOSS.FOCAL_GAMMA,
        "focal_weight": node.LOSS.FOCAL_WEIGHT,
        "dice_weight": node.LOSS.DICE_WEIGHT,
    }


def _build_category_branch(node: CfgNode, in_channels: int) -> CategoryBranch:
    predict = Conv2d(node.INSTANCE_CHANNELS, node.NUM_CLASSES, kernel_size=3, padding=1)
    init_normal(predict, bias=prior_bias(node.PRIOR_PROB))
    return CategoryBranch(
        tower=_build_tower(node, in_channels),
        predict=predict,
        num_grids=node.NUM_GRIDS,
        resize_before=node.CATE_DOWN_POS,
    )


def _build_tower(node: CfgNode, in_channels: int) -> nn.Sequential:
    return build_tower(
        in_channels, node.INSTANCE_CHANNELS, node.NUM_INSTANCE_CONVS, **tower_options(node)
    )


def _build_prediction(node: CfgNode, out_channels: int, kernel_size: int) -> Conv2d:
    conv = Conv2d(
        node.INSTANCE_CHANNELS, out_channels, kernel_size=kernel_size, padding=kernel_size // 2
    )
    init_normal(conv, bias=prior_bias(node.PRIOR_PROB))
    return conv
