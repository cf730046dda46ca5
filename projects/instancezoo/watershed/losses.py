"""Losses of both networks.

Legend: N images, H W image size, B energy levels, P pixels that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from .networks import scale_to_unit

_SQUARED_FLOOR = 1e-12
_SHORTENED = 0.999999  # keeps the arc cosine from its ends, where its gradient is infinite
_PROB_FLOOR = 1e-25


def direction_loss(
    directions: Tensor, targets: Tensor, is_thing: Tensor, weights: Tensor
) -> Tensor:
    """Squared angle between directions.

    Args:
        directions: (N, 2, H, W), of any length.
        targets: (N, 2, H, W), of any length.
        is_thing: (N, H, W) bool, pixels that the mean is over.
        weights: (N, H, W).

    Returns:
        ()
    """
    image, y, x = (is_thing & (weights > 0)).nonzero(as_tuple=True)
    found, wanted = (vectors[image, :, y, x] for vectors in (directions, targets))  # (P, 2)
    found, wanted = (
        _SHORTENED * scale_to_unit(vectors, _SQUARED_FLOOR) for vectors in (found, wanted)
    )
    angles = (found * wanted).sum(dim=1).acos()
    return (angles.square() * weights[image, y, x]).sum() / (is_thing.sum() + 1)


def energy_loss(
    logits: Tensor,
    levels: Tensor,
    is_thing: Tensor,
    weights: Tensor,
    level_weights: Sequence[float],
) -> Tensor:
    """Cross-entropy of each level against all others, on probabilities of a softmax.

    Args:
        logits: (N, B, H, W).
        levels: (N, H, W) long.
        is_thing: (N, H, W) bool.
        weights: (N, H, W).
        level_weights: B factors.

    Returns:
        ()
    """
    counted = weights * is_thing
    image, y, x = counted.nonzero(as_tuple=True)
    chosen = logits[image, :, y, x]  # (P, B)
    lowest = log(_PROB_FLOOR)
    log_probs = chosen.log_softmax(dim=1).clamp(min=lowest)
    log_others = _sum_others(chosen.softmax(dim=1)).clamp(min=_PROB_FLOOR).log()
    is_level = levels[image, y, x, None] == torch.arange(chosen.shape[1], device=chosen.device)
    entropies = -torch.where(is_level, log_probs, log_others)
    by_pixel = (entropies * entropies.new_tensor(level_weights)).sum(dim=1)  # (P,)
    return (by_pixel * counted[image, y, x]).sum() / (counted.sum() + 1)


def _sum_others(probs: Tensor) -> Tensor:
    """One minus each probability (P, B) as the sum of the others: exact also near 1."""
    zeros = probs.new_zeros(len(probs), 1)
    before = torch.cat([zeros, probs[:, :-1].cumsum(dim=1)], dim=1)
    after = torch.cat([probs[:, 1:].flip(1).cumsum(dim=1).flip(1), zeros], dim=1)
    return before + after
