"""Boxes as in Caffe2's Detectron, which the published weights were trained with.

There the second corner of a box is its last pixel, and a width is x2 - x1 + 1. Here all boxes are
exclusive, as in Detectron2: x2 is one more. With that, box deltas and IoU are the same in both.
The last pixel counts where a box is scaled, clipped, pooled from, or pasted into.

Legend: L levels, H W map size, A anchors of a cell, R regions, M masks, S side of a mask.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.modeling.masks import BoxMasks
from instancezoo.modeling.rcnn import BatchImages

# Detectron's masks are above 0.5, and where scores are 0 and 1, many pixels of a contour are at it.
# The margin is above the rounding of `BoxMasks`, so that none of these belongs to a mask.
_MASK_THRESHOLD = 0.5 + 2**-16


class LegacyAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of whole sizes around the centres of the cells.

    A level's smallest anchor has the level's stride as its size; its sides are rounded before they
    are multiplied.

    Args:
        sizes, aspect_ratios, strides: as in Detectron2's, L each; the centres need no `offset`.
    """

    def __init__(
        self, *, sizes: list[list[float]], aspect_ratios: list[list[float]], strides: list[int]
    ) -> None:
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=0.5)

    def _calculate_anchors(
        self, sizes: list[list[float]], aspect_ratios: list[list[float]]
    ) -> BufferList:
        levels = zip(self.strides, sizes, aspect_ratios, strict=True)
        return BufferList([make_cell_anchors(*level) for level in levels])


def make_cell_anchors(stride: int, sizes: list[float], ratios: list[float]) -> Tensor:
    """Anchors around the origin: (A, 4) XYXY in pixels.

    Args:
        stride: of the level.
        sizes: square roots of the areas.
        ratios: height / width.
    """
    rows = []
    for size in sizes:
        for ratio in ratios:
            width = round(sqrt(stride**2 / ratio))  # to even, as in NumPy
            height = round(width * ratio)
            x, y = width * size / stride / 2, height * size / stride / 2
            rows.append([-x, -y, x, y])
    return torch.tensor(rows)


def to_inclusive(boxes: Tensor) -> Tensor:
    """Exclusive boxes (R, 4) -> the same with their last pixels as second corners."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip exclusive boxes to the pixels of an image; at least one remains of each.

    Args:
        boxes: (..., 4).
        size: height and width.
    """
    height, width = size
    low = boxes.new_tensor([0, 0, 1, 1])
    high = boxes.new_tensor([width, height, width, height]) - 1 + low
    return boxes.clamp(min=low, max=high)


def resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale exclusive boxes with an image: their last pixels are scaled.

    Args:
        boxes: (R, 4).
        size, new_size: height and width of the image before and after.
    """
    scale_y, scale_x = new_size[0] / size[0], new_size[1] / size[1]
    scale = boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    return to_inclusive(boxes) * scale + boxes.new_tensor([0, 0, 1, 1])


def list_output_sizes(images: BatchImages) -> list[tuple[int, int]]:
    """Height and width of the original of each image, as far as the batch names them."""
    return [
        (record.get("height", height), record.get("width", width))
        for record, (height, width) in zip(images.records, images.image_sizes, strict=True)
    ]


def shift_targets(images: BatchImages, targets: list[Instances]) -> list[Instances]:
    """Ground truth whose last pixels were scaled with the image, not the pixels' far ends.

    Args:
        images: N images.
        targets: N Instances with `gt_boxes` in pixels of the network input.

    Returns:
        Copies; a box is at least one pixel wide and high.
    """
    shifted = []
    for objects, output_size in zip(targets, list_output_sizes(images), strict=True):
        boxes, (height, width) = objects.gt_boxes.tensor, objects.image_size
        pixel = boxes.new_tensor([width / output_size[1], height / output_size[0]])
        first, end = boxes.split(2, dim=1)
        boxes = torch.cat([first, torch.maximum(end - pixel, first) + 1], dim=1)
        copy = Instances(objects.image_size, **objects.get_fields())
        copy.gt_boxes = Boxes(boxes)
        shifted.append(copy)
    return shifted


def widen_boxes(boxes: Tensor) -> Tensor:
    """Boxes (R, 4) that are at least one pixel wide and high."""
    first, end = boxes.split(2, dim=1)
    return torch.cat([first, torch.maximum(end, first + 1)], dim=1)


def place_masks(scores: Tensor, boxes: Tensor) -> BoxMasks:
    """Place mask scores on whole pixels of an image, as Detectron pasted them.

    Scores get a border of zeros. Boxes grow by it, their corners lose their fractions, and the
    scores fill all pixels from the first to the last. A pixel of the mask has more than 0.5.

    Args:
        scores: (M, S, S), values in [0, 1].
        boxes: (M, 4), exclusive.

    Returns:
        The same masks on equivalent boxes.
    """
    border = 1 + 2 / scores.shape[-1]
    first, last = to_inclusive(boxes).unflatten(1, (2, 2)).unbind(1)  # (M, 2) x and y
    center, half = (first + last) / 2, (last - first) / 2 * border
    first, last = (center - half).trunc(), (center + half).trunc()
    corners = torch.cat([first, first + (last - first + 1).clamp(min=1)], dim=1)
    return BoxMasks(F.pad(scores, (1, 1, 1, 1)), corners, _MASK_THRESHOLD)


def just_below(value: float) -> float:
    """The number before in fp32: `x > just_below(value)` means `x >= value`."""
    return torch.nextafter(torch.tensor(value), torch.tensor(-torch.inf)).item()
