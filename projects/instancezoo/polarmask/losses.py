"""Losses of positive points (section 3.3).

Legend: Q positive points, R rays.
"""

from __future__ import annotations

from torch import Tensor

# Smallest overlap that the logarithm of the box loss sees.
_MIN_IOU = 1e-6
# Keeps 0 / 0 away where no point has any weight.
_MIN_WEIGHT = 1e-6


def polar_iou_loss(rays: Tensor, targets: Tensor) -> Tensor:
    """Polar IoU loss: log of the sum of longer over the sum of shorter distances (section 3.3).

    Args:
        rays: (Q, R) predicted distances, positive pixels.
        targets: (Q, R) pixels.

    Returns:
        (Q,) not negative.
    """
    longer = rays.maximum(targets).sum(dim=1)
    shorter = rays.minimum(targets).sum(dim=1)
    return (longer / shorter.clamp(min=_MIN_IOU)).log()


def box_iou_loss(boxes: Tensor, targets: Tensor, plus_one: bool = True) -> Tensor:
    """Minus the logarithm of the IoU of two boxes around one point (UnitBox).

    Args:
        boxes: (Q, 4) predicted distances to left, top, right, bottom in pixels.
        targets: (Q, 4) likewise.
        plus_one: a side is one pixel longer than the sum of its distances: inclusive corners.

    Returns:
        (Q,) not negative.
    """
    area, target_area = _measure_area(boxes, plus_one), _measure_area(targets, plus_one)
    shared = _measure_area(boxes.minimum(targets), plus_one)
    iou = shared / (area + target_area - shared)
    return -iou.clamp(min=_MIN_IOU).log()


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of (Q,) losses by (Q,) weights; 0 without any, still connected to the losses."""
    return (losses * weights).sum() / weights.sum().clamp(min=_MIN_WEIGHT)


def _measure_area(distances: Tensor, plus_one: bool) -> Tensor:
    return (distances[:, :2] + distances[:, 2:] + int(plus_one)).prod(dim=1)
