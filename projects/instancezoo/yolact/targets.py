"""Anchors, and what each of them has to predict (YOLACT, section 4; SSD's encoding of boxes).

Legend: N images, L levels, P anchors of all levels, M objects of an image, K classes, H W map
size, R positive anchors of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch import Tensor
from torchvision.ops import box_convert

from instancezoo.layers.budget import DEFAULT_BUDGET

# SSD's variances: what a delta of the centre and of the size is multiplied by.
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
NEUTRAL, BACKGROUND = -1, 0
_FORCED_IOU = 2.0


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of a cell, in pixels of the network input.

    Attributes:
        scales: for each level its sides.
        aspect_ratios: width / height.
        square: if True, the height is overwritten with the width.
    """

    scales: list[list[float]]
    aspect_ratios: list[float]
    square: bool

    @property
    def num_anchors(self) -> int:
        """Anchors of a cell."""
        return len(self.scales[0]) * len(self.aspect_ratios)


@dataclass(frozen=True)
class MatchRules:
    """Which anchors are positive.

    Attributes:
        pos_iou: IoU from which an anchor is positive.
        neg_iou: IoU under which it is background.
        crowd_share: share of a background anchor that a crowd may cover.
    """

    pos_iou: float = 0.5
    neg_iou: float = 0.4
    crowd_share: float = 0.7


@dataclass(frozen=True)
class YOLACTTargets:
    """Targets of a batch.

    Attributes:
        labels: (N, P) long: 0 background, class + 1, or -1 for anchors without a class loss.
        image, anchor, instance: (R,) long, the positive anchors, image by image, and the index of
            their object in the image.
        deltas: (R, 4) encoded boxes of their objects.
        boxes: N tensors (M, 4), XYXY in prototype cells.
        classes: N tensors (M,) long.
        masks: N tensors (M, H, W) bool, at the prototypes' size.
        semantic: (N, K, H, W) bool, where each class is on the finest level.
    """

    labels: Tensor
    image: Tensor
    anchor: Tensor
    instance: Tensor
    deltas: Tensor
    boxes: list[Tensor]
    classes: list[Tensor]
    masks: list[Tensor]
    semantic: Tensor


def make_anchors(
    map_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    spec: AnchorSpec,
    device: torch.device | str | None = None,
) -> Tensor:
    """Anchors of all levels.

    Args:
        map_sizes: L pairs, height and width.
        image_size: height and width of the network input in pixels.
        spec: anchors of a cell.
        device: of the result.

    Returns:
        (P, 4) centre x, centre y, width, height in pixels: level by level, row by row, for each
        cell each side with each aspect ratio. Centres are those of the cells, whose sides are the
        input's divided by the map's.
    """
    levels = []
    ratios = torch.tensor(spec.aspect_ratios, device=device).sqrt()  # (ratios,)
    for (rows, columns), sides in zip(map_sizes, spec.scales, strict=True):
        side = torch.tensor(sides, device=device, dtype=ratios.dtype)[:, None]
        widths, heights = (side * ratios).flatten(), (side / ratios).flatten()  # (A,)
        sizes = torch.stack([widths, widths if spec.square else heights], dim=1)  # (A, 2)
        y = (torch.arange(rows, device=device) + 0.5) * (image_size[0] / rows)
        x = (torch.arange(columns, device=device) + 0.5) * (image_size[1] / columns)
        y, x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack([x, y], dim=2).reshape(-1, 1, 2).expand(-1, len(sizes), -1)
        sizes = sizes.expand(len(centers), -1, -1)  # (H * W, A, 2)
        levels.append(torch.cat([centers, sizes], dim=2).flatten(0, 1))  # (H * W * A, 4)
    return torch.cat(levels)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that `decode_boxes` turns back: (R, 4) XYXY and (R, 4) anchors -> (R, 4)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sizes = boxes[:, 2:] - boxes[:, :2]
    moved = (centers - anchors[:, :2]) / (anchors[:, 2:] * CENTER_VARIANCE)
    return torch.cat([moved, (sizes / anchors[:, 2:]).log() / SIZE_VARIANCE], dim=1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Predicted boxes: (R, 4) deltas and (R, 4) anchors -> (R, 4) XYXY, not clipped."""
    centers = anchors[:, :2] + deltas[:, :2] * CENTER_VARIANCE * anchors[:, 2:]
    sizes = anchors[:, 2:] * (deltas[:, 2:] * SIZE_VARIANCE).exp()
    corners = centers - sizes / 2
    return torch.cat([corners, corners + sizes], dim=1)


def make_targets(
    ground_truth: Sequence[Instances],
    anchors: Tensor,
    rules: MatchRules,
    *,
    padded_size: tuple[int, int],
    prototype_size: tuple[int, int],
    semantic_size: tuple[int, int],
    num_classes: int,
) -> YOLACTTargets:
    """Targets of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes`, `gt_classes`, `gt_masks` (BitMasks) and
            `gt_is_crowd`. Objects without area are left out.
        anchors: (P, 4) from `make_anchors`.
        rules: which anchors are positive.
        padded_size: height and width of the network input in pixels.
        prototype_size, semantic_size: height and width of the prototypes and the finest level.
        num_classes: K.
    """
    corners = box_convert(anchors, "cxcywh", "xyxy")
    scale = anchors.new_tensor(prototype_size) / anchors.new_tensor(padded_size)
    scale = scale.flip(0).repeat(2)  # of x, y, x, y
    labels, instances, boxes, classes, masks, semantic = [], [], [], [], [], []
    for image in ground_truth:
        objects, crowds = split_crowds(image)
        own = objects.gt_boxes.tensor
        label, instance = match_anchors(corners, own, objects.gt_classes, crowds, rules)
        labels.append(label)
        instances.append(instance)
        boxes.append(own)
        classes.append(objects.gt_classes)
        bitmasks = objects.gt_masks.tensor
        masks.append(resize_masks(bitmasks, padded_size, prototype_size))
        areas = resize_masks(bitmasks, padded_size, semantic_size)
        semantic.append(paint_classes(areas, objects.gt_classes, num_classes))
    stacked = torch.stack(labels)
    positive = stacked > BACKGROUND
    image_index, anchor_index = positive.nonzero(as_tuple=True)
    instance_index = torch.stack(instances)[positive]
    matched = torch.cat([b[i[p]] for b, i, p in zip(boxes, instances, positive, strict=True)])
    return YOLACTTargets(
        labels=stacked,
        image=image_index,
        anchor=anchor_index,
        instance=instance_index,
        deltas=encode_boxes(matched, anchors[anchor_index]),
        boxes=[own * scale for own in boxes],
        classes=classes,
        masks=masks,
        semantic=torch.stack(semantic),
    )


def split_crowds(image: Instances) -> tuple[Instances, Tensor]:
    """Objects with an area, and the boxes (crowds, 4) of crowds."""
    boxes = image.gt_boxes.tensor
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return image[has_area & ~image.gt_is_crowd], boxes[has_area & image.gt_is_crowd]


def match_anchors(
    corners: Tensor, boxes: Tensor, classes: Tensor, crowds: Tensor, rules: MatchRules
) -> tuple[Tensor, Tensor]:
    """Find the object of each anchor of an image.

    Args:
        corners: (P, 4) anchors as XYXY.
        boxes: (M, 4) XYXY of the objects.
        classes: (M,) long.
        crowds: (crowds, 4) XYXY.
        rules: thresholds.

    Returns:
        (P,) long labels, and (P,) long objects, those of positive anchors.
    """
    num_anchors = len(corners)
    labels = classes.new_full((num_anchors,), BACKGROUND)
    best = classes.new_zeros(num_anchors)
    anchor_boxes = Boxes(corners)
    if len(boxes):
        ious = pairwise_iou(Boxes(boxes), anchor_boxes)  # (M, P)
        best_iou, best = ious.max(dim=0)
        forced = assign_best_anchors(ious)  # (M,)
        objects = (forced >= 0).nonzero().squeeze(1)
        best_iou[forced[objects]] = _FORCED_IOU
        best[forced[objects]] = objects
        labels = classes[best] + 1
        labels[best_iou < rules.pos_iou] = NEUTRAL
        labels[best_iou < rules.neg_iou] = BACKGROUND
    if len(crowds):
        covered = pairwise_ioa(Boxes(crowds), anchor_boxes).amax(dim=0)  # (P,)
        labels[(covered > rules.crowd_share) & (labels <= BACKGROUND)] = NEUTRAL
    return labels, best


def assign_best_anchors(ious: Tensor) -> Tensor:
    """Give every object an anchor of its own: of all pairs the one with the largest IoU first.

    All pairs that are the best of both their object and their anchor are taken at once; taking
    them one by one in the order of their IoU gives the same pairs.

    Args:
        ious: (M, P)

    Returns:
        (M,) long, the anchor of each object; -1 where there are fewer anchors than objects.
    """
    remaining = ious.clone()  # (M, P)
    anchors = torch.full((len(ious),), -1, dtype=torch.long, device=ious.device)
    while remaining.numel() and bool((remaining >= 0).any()):
        choice = remaining.argmax(dim=1)  # (M,) best anchor of each object
        best_object = remaining[:, choice].argmax(dim=0)  # (M,) best object of that anchor
        rows = torch.arange(len(ious), device=ious.device)
        mutual = (best_object == rows) & (anchors < 0)
        anchors[mutual] = choice[mutual]
        remaining[mutual] = -1
        remaining[:, choice[mutual]] = -1
    return anchors


def resize_masks(masks: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Masks at the size of a map; a cell belongs to one if over half of it is inside.

    Args:
        masks: (M, height, width) bool, without padding.
        padded_size: height and width of the network input.
        size: H, W.

    Returns:
        (M, H, W) bool.
    """
    padding = padded_size[1] - masks.shape[2], padded_size[0] - masks.shape[1]
    limit = max(1, DEFAULT_BUDGET // (4 * padded_size[0] * padded_size[1]))
    resized = [
        F.interpolate(
            F.pad(part, (0, padding[0], 0, padding[1]))[:, None].float(), size, mode="bilinear"
        )[:, 0]
        > 0.5
        for part in masks.split(limit)
    ]
    return torch.cat(resized)


def paint_classes(masks: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Where each class is: (M, H, W) bool masks and (M,) classes -> (K, H, W) bool."""
    counts = masks.new_zeros((num_classes, *masks.shape[1:]), dtype=torch.int32)
    return counts.index_add(0, classes, masks.int()) > 0
