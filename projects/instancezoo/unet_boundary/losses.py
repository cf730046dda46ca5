"""The losses: cross-entropy and Dice of interior and border, in the variants of DSB 2018.

Legend: N images, K classes, H W map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import SIGMOID_CHANNELS, BoundaryMaps
from .targets import BORDER, INTERIOR, BoundaryTargets


@dataclass(frozen=True)
class LossVariant:
    """Weights of cross-entropy, Dice of the interior (or object) and of the border.

    Attributes:
        cross_entropy, interior, border: weights.
        smooth: added to both sums of Dice; with little, an image without border costs a whole
            Dice as soon as any is predicted.
    """

    cross_entropy: float
    interior: float
    border: float
    smooth: float = 1.0


VARIANTS = {
    "A": LossVariant(0.5, 0.3, 0.2),
    "B": LossVariant(0.6, 0.2, 0.2, smooth=1e-3),
    "sigmoid": LossVariant(0.5, 0.3, 0.2),
    "weighted": LossVariant(1.0, 0.0, 0.0),
}


def boundary_losses(
    logits: Tensor, targets: BoundaryTargets, variant: LossVariant
) -> dict[str, Tensor]:
    """`loss_pixels`, `loss_interior` and `loss_border`, weighted; their sum is the variant's loss.

    Args:
        logits: (N, 3, H, W), or (N, 2, H, W) for sigmoids of object and border; fp32 or fp64.
        targets: of the N images.
        variant: weights.
    """
    border = targets.boundary == BORDER
    if logits.shape[1] == SIGMOID_CHANNELS:
        truth = torch.stack([targets.ids > 0, border], dim=1)  # (N, 2, H, W)
        loss = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
        pixels, probs = loss.mean(dim=1), logits.sigmoid()
    else:
        truth = torch.stack([targets.boundary == INTERIOR, border], dim=1)
        pixels = F.cross_entropy(logits, targets.boundary, reduction="none")
        probs = logits.softmax(dim=1)[:, :2]
    dice = measure_dice(probs, truth, targets.valid, variant.smooth)
    return {
        "loss_pixels": variant.cross_entropy * average(pixels, targets.valid, targets.weights),
        "loss_interior": variant.interior * (1 - dice[0]),
        "loss_border": variant.border * (1 - dice[1]),
    }


def measure_dice(probs: Tensor, truth: Tensor, valid: Tensor, smooth: float) -> Tensor:
    """Soft Dice of each channel over the whole batch.

    Args:
        probs: (N, C, H, W) in [0, 1].
        truth: (N, C, H, W) bool.
        valid: (N, H, W) bool, pixels that count.
        smooth: added to numerator and denominator.

    Returns:
        (C,) in [0, 1].
    """
    probs, truth = probs * valid[:, None], truth & valid[:, None]
    overlap, size, area = (x.sum(dim=(0, 2, 3)) for x in (probs * truth, probs, truth))
    return (2 * overlap + smooth) / (size + area + smooth)


def average(values: Tensor, valid: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the valid values, all (N, H, W), each times its weight; 0 where none is valid."""
    values = values if weights is None else values * weights
    return values.where(valid, 0).sum() / valid.sum().clamp(min=1)


def object_loss(maps: BoundaryMaps, targets: BoundaryTargets) -> Tensor:
    """Binary cross-entropy of whole objects."""
    assert maps.object_logits is not None
    logits = maps.object_logits[:, 0].float()
    truth = (targets.ids > 0).to(logits)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return average(loss, targets.valid)


def class_loss(maps: BoundaryMaps, targets: BoundaryTargets) -> Tensor:
    """Cross-entropy of the objects' classes on their pixels."""
    assert maps.cls_logits is not None
    inside = targets.valid & (targets.ids > 0)
    classes = targets.classes.where(inside, 0)
    return average(F.cross_entropy(maps.cls_logits.float(), classes, reduction="none"), inside)
