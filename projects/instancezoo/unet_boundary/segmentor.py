"""Boundary U-Net: interior and touching border, parted by a watershed (Data Science Bowl 2018).

Legend: N images, K classes, M segments, h w grid.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.owners import average_by_owner
from instancezoo.modeling.grouping import (
    BottomUpSegmenter,
    Segments,
    read_group_arguments,
    vote_classes,
)

from .config import check_boundary_config
from .grouping import GroupingSettings, group_pixels, quantise
from .head import SIGMOID_CHANNELS, SOFTMAX_CHANNELS, BoundaryHead, BoundaryMaps
from .losses import VARIANTS, boundary_losses, class_loss, object_loss
from .targets import BoundaryTargets, make_targets


@META_ARCH_REGISTRY.register()
class BoundaryUNet(BottomUpSegmenter[BoundaryMaps, BoundaryTargets]):
    """Tells interior, border between objects and background apart, and lets seeds grow.

    Args:
        loss: a key of `VARIANTS`.
        contacts: see `find_borders`.
        weight_max, weight_sigma: of `weigh_pixels`.
        object_weight, semantic_weight: of the losses of whole objects and of classes.
        grouping: how pixels are grouped.
        kwargs: those of `BottomUpSegmenter`.
    """

    head: BoundaryHead

    @configurable
    def __init__(
        self,
        *,
        loss: str,
        contacts: bool,
        weight_max: float,
        weight_sigma: float,
        object_weight: float,
        semantic_weight: float,
        grouping: GroupingSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self.contacts = contacts
        self.weight_max, self.weight_sigma = weight_max, weight_sigma
        self.object_weight, self.semantic_weight = object_weight, semantic_weight
        self.grouping = grouping

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        check_boundary_config(cfg, shapes)
        node = cfg.MODEL.BOUNDARY
        is_sigmoid = node.LOSS == "sigmoid"
        return {
            **read_group_arguments(arguments, node, node.IN_FEATURES),
            "head": BoundaryHead(
                shapes[node.IN_FEATURES[0]].channels or 1,
                num_channels=SIGMOID_CHANNELS if is_sigmoid else SOFTMAX_CHANNELS,
                num_classes=node.NUM_CLASSES,
                with_objects=node.OBJECTS and not is_sigmoid,
            ),
            "stride": 1,
            "loss": node.LOSS,
            "contacts": node.BORDER_CONTACTS,
            "weight_max": node.WEIGHT_MAX,
            "weight_sigma": node.WEIGHT_SIGMA,
            "object_weight": node.OBJECT_LOSS_WEIGHT,
            "semantic_weight": node.SEM_LOSS_WEIGHT,
            "grouping": GroupingSettings(
                seed_thresh=node.T_SEED,
                mask_thresh=node.T_MASK,
                object_thresh=node.T_OBJECT,
                min_size=node.MIN_SIZE,
                draw_line=node.WATERSHED_LINE,
            ),
        }

    def assign(
        self, outputs: BoundaryMaps, images: ImageList, ground_truth: list[Instances]
    ) -> BoundaryTargets:
        """The three classes of pixels; crowds and padding do not count."""
        objects = self.paint(images, ground_truth)
        weight = self.weight_max if self.loss == "weighted" else None
        return make_targets(objects, contacts=self.contacts, weight=weight, sigma=self.weight_sigma)

    def losses(self, outputs: BoundaryMaps, targets: BoundaryTargets) -> dict[str, Tensor]:
        """`loss_pixels`, `loss_interior`, `loss_border`; of the optional outputs `loss_objects`
        and `loss_classes`.
        """
        losses = boundary_losses(outputs.logits.float(), targets, VARIANTS[self.loss])
        losses["loss_pixels"] = losses["loss_pixels"] + zero_of_parameters(self.head)
        if outputs.object_logits is not None:
            losses["loss_objects"] = self.object_weight * object_loss(outputs, targets)
        if outputs.cls_logits is not None:
            losses["loss_classes"] = self.semantic_weight * class_loss(outputs, targets)
        return losses

    def predict_classes(self, maps: BoundaryMaps, index: int, grid: tuple[int, int]) -> Tensor:
        """Softmax of the class branch (K + 1, h, w); the background, which it lacks, is 0."""
        assert maps.cls_logits is not None
        probs = maps.cls_logits[index, :, : grid[0], : grid[1]].float().softmax(dim=0)
        return torch.cat([probs, torch.zeros_like(probs[:1])])

    def group(self, maps: BoundaryMaps, index: int, grid: tuple[int, int]) -> Segments:
        """Seeded watershed; a segment's confidence is its mean probability of the interior."""
        mine = maps.at(slice(index, index + 1))
        probs, border = (p[0, : grid[0], : grid[1]] for p in mine.predict_interior())
        objects = mine.predict_objects()
        if objects is not None:
            objects = quantise(objects[0, : grid[0], : grid[1]].detach())
        levels = quantise(probs.detach()), quantise(border.detach())
        labels = torch.from_numpy(group_pixels(*levels, objects, self.grouping)).to(probs.device)
        cells = labels.flatten().nonzero().squeeze(1)
        owners, count = labels.flatten()[cells] - 1, int(labels.amax())
        return Segments.from_labels(labels, average_by_owner(probs.flatten()[cells], owners, count))

    def describe(self, maps: BoundaryMaps, index: int, segments: Segments) -> tuple[Tensor, Tensor]:
        """The class that most pixels vote for; the score is the confidence alone."""
        if maps.cls_logits is None:
            return segments.owners.new_zeros(len(segments)), segments.confidences
        classes, _ = vote_classes(self.predict_classes(maps, index, segments.grid), segments)
        return classes, segments.confidences
