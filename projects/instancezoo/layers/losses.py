"""Losses that several methods share.

Legend: N images, P points (or pixels of a mask), K classes, R rows (one per predicted mask).
"""

from __future__ import annotations

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn


def class_focal_loss(logits: Tensor, classes: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of one class or none per point, summed (RetinaNet, section 3).

    Args:
        logits: (N, P, K), any float; computed in fp32.
        classes: (N, P) long, in [0, K]; K is background.
        alpha: weight of the positive class, in [0, 1].
        gamma: exponent of the modulating factor.

    Returns:
        () fp32.
    """
    # Not one_hot(): its int64 tensor takes eight times the memory.
    is_class = classes[..., None] == torch.arange(logits.shape[2], device=classes.device)
    return sigmoid_focal_loss(
        logits.float(), is_class.float(), alpha=alpha, gamma=gamma, reduction="sum"
    )


def zero_of_parameters(module: nn.Module) -> Tensor:
    """A zero that depends on every parameter: even a batch without objects gives them gradients."""
    return 0.0 * sum((parameter.sum() for parameter in module.parameters()), torch.zeros(()))


def dice_loss(mask_probs: Tensor, targets: Tensor, eps: float = 1e-3) -> Tensor:
    """One minus the Dice coefficient with squared sums (V-Net; SOLO, section 3.3).

    Sums run in fp32: a mask has more pixels than half precision can count.

    Args:
        mask_probs: (R, P), values in [0, 1].
        targets: (R, P), bool or 0/1.
        eps: added to each of the two sums of the denominator.

    Returns:
        (R,) fp32, values in [0, 1].
    """
    probs = mask_probs.float()
    overlap = (probs * targets).sum(dim=1)
    size = probs.square().sum(dim=1) + eps + (targets.sum(dim=1) + eps)
    return 1 - 2 * overlap / size
