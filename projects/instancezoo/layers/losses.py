"""Losses that fvcore lacks (focal loss comes from there).

Legend: R rows (one per predicted mask), P pixels.
"""

from __future__ import annotations

from torch import Tensor


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
