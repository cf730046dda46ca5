"""Losses of boxes given by distances from one point, and the choices of a config.

Legend: R positive points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BOX_LOSSES = ("giou", "iou", "linear_iou")
# Target of the quality branch.
BOX_QUALITIES = ("ctrness", "iou")
# Divisor of the class loss.
CLASS_NORMALIZERS = ("fg", "moving_fg", "all")
# Keeps the logarithm of an IoU finite.
_SMOOTHING = 1.0


class Overlap(NamedTuple):
    """IoU and generalised IoU of pairs of boxes, (R,) each."""

    iou: Tensor
    giou: Tensor


def compare_distances(predicted: Tensor, target: Tensor) -> Overlap:
    """Compare boxes around common points.

    parity: one is added to intersection and union, in square strides, which raises the IoU of small
    boxes; right would be an epsilon.

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
        ValueError: unknown kind.
    """
    if kind == "giou":
        return 1 - overlap.giou
    if kind == "iou":
        return -overlap.iou.log()
    if kind == "linear_iou":
        return 1 - overlap.iou
    raise ValueError(f"box loss '{kind}' is none of: {', '.join(BOX_LOSSES)}")


def _measure_area(distances: Tensor) -> Tensor:
    return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])
