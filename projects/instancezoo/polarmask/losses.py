"""Losses of positive points (section 3.3).

Legend: R positive points, V rays.
"""

from __future__ import annotations

from torch import Tensor

# Lower limit of what a loss divides by or takes the logarithm of: an IoU, pixels, a sum of weights.
_EPSILON = 1e-6


def polar_iou_loss(rays: Tensor, targets: Tensor) -> Tensor:
    """Polar IoU loss: log of the sum of longer over the sum of shorter distances (section 3.3).

    Args:
        rays: (R, V) predicted distances, positive pixels.
        targets: (R, V) pixels.

    Returns:
        (R,) not negative.
    """
    longer = rays.maximum(targets).sum(dim=1)
    shorter = rays.minimum(targets).sum(dim=1)
    return (longer / shorter.clamp(min=_EPSILON)).log()


def box_iou_loss(boxes: Tensor, targets: Tensor, plus_one: bool = True) -> Tensor:
    """Minus the logarithm of the IoU of two boxes around one point (UnitBox).

    Args:
        boxes: (R, 4) predicted distances to left, top, right, bottom in pixels.
        targets: (R, 4) likewise.
        plus_one: if True, boxes are first and last pixel: sides are one pixel longer.

    Returns:
        (R,) not negative.
    """
    area, target_area = _measure_area(boxes, plus_one), _measure_area(targets, plus_one)
    shared = _measure_area(boxes.minimum(targets), plus_one)
    iou = shared / (area + target_area - shared)
    return -iou.clamp(min=_EPSILON).log()


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of losses (R,) by weights (R,); 0 without weight, connected to the losses."""
    return (losses * weights).sum() / weights.sum().clamp(min=_EPSILON)


def _measure_area(distances: Tensor, plus_one: bool) -> Tensor:
    return (distances[:, :2] + distances[:, 2:] + int(plus_one)).prod(dim=1)
