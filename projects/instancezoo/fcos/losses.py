"""Overlap of boxes that are given by distances from one point, and losses of it.

Legend: R positive points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from instancezoo.errors import check_choice

BOX_LOSSES = ("giou", "iou", "linear_iou")
# Keeps the logarithm of an IoU finite.
_SMOOTHING = 1.0


class Overlap(NamedTuple):
    """IoU and generalised IoU of pairs of boxes, (R,) each."""

    iou: Tensor
    giou: Tensor


def compare_distances(predicted: Tensor, target: Tensor) -> Overlap:
    """Compare boxes around common points.

    parity: one is added to intersection and union, in square strides, which raises the IoU of small
    boxes; without it an epsilon would do.

    Args:
        predicted: (R, 4) distances to the left, top, right and bottom side, not negative.
        target: (R, 4), positive, in the same unit.
    """
    shared = _measure_area(torch.minimum(predicted, target))
    union = _measure_area(predicted) + _measure_area(target) - shared
    hull = _measure_area(torch.maximum(predicted, target))
    iou = (shared + _SMOOTHING) / (union + _SMOOTHING)
    return Overlap(iou, iou - (hull - union) / hull)


def compute_box_loss(overlap: Overlap, kind: str) -> Tensor:
    """Loss of each pair of boxes.

    Args:
        overlap: from `compare_distances`.
        kind: "giou" 1 - GIoU, "iou" -log IoU, "linear_iou" 1 - IoU.

    Returns:
        (R,), not negative.

    Raises:
        ConfigError: unknown kind.
    """
    check_choice("MODEL.FCOS.LOC_LOSS_TYPE", kind, BOX_LOSSES)
    if kind == "giou":
        return 1 - overlap.giou
    if kind == "iou":
        return -overlap.iou.log()
    return 1 - overlap.iou


def _measure_area(distances: Tensor) -> Tensor:
    return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])
