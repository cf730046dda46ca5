"""From the classifiers' logits to seeds, and from seeds to segments.

Legend: T thresholds, K classes, P pixels, A seeds, M segments, D embedding size, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.layers.metric import (
    choose_seeds,
    find_limit,
    find_seed_masks,
    measure_seed_similarity,
)
from instancezoo.layers.nms import greedy_mask_nms, pack_masks
from instancezoo.modeling.grouping import ClassifiedSegments


@dataclass(frozen=True)
class SeedSettings:
    """Keys of MODEL.METRIC of the same meaning; `max_segments` is MAX_INSTANCES."""

    taus: Sequence[float] = (0.25, 0.5, 0.75, 0.9)
    alpha: float = 0.3
    max_seeds: int = 100
    min_objective: float = 0.33
    nms_thresh: float = 0.5
    nms_per_class: bool = False
    foreground_only: bool = False
    foreground_thresh: float = 0.5
    max_segments: int = 100


@dataclass(frozen=True)
class SeedSegments(ClassifiedSegments):
    """Segments that may overlap, each with the class of its seed; the confidences are the scores.

    Attributes:
        classes: (M,) long.
        margins: (M, h, w), similarity to the seed minus the threshold; 0 or more inside.
    """

    classes: Tensor
    margins: Tensor


def rate_pixels(logits: Tensor) -> Tensor:
    """Seediness: the largest probability of any class at any threshold.

    Args:
        logits: (T, K + 1, P), background first; fp32 or fp64.

    Returns:
        (P,), in [0, 1].
    """
    rates = [(x[1:].amax(dim=0) - x.logsumexp(dim=0)).exp() for x in logits]
    return torch.stack(rates).amax(dim=0)


def find_best_class(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, class and probability of the most confident classifier of each seed.

    Args:
        logits: (T, K + 1, A), background first.

    Returns:
        Number of the threshold and class (A,) long each, the first of equal ones; (A,) scores.
    """
    probs = logits.softmax(dim=1)[:, 1:]  # (T, K, A)
    scores, best = probs.flatten(0, 1).max(dim=0)
    num_classes = probs.shape[1]
    return best // num_classes, best % num_classes, scores


def grow_segments(
    embeddings: Tensor, logits: Tensor, grid: tuple[int, int], settings: SeedSettings
) -> SeedSegments:
    """Seeds, the mask of each, and non-maximum suppression (section 3.3).

    Args:
        embeddings: (D, P), fp32.
        logits: (T, K + 1, P), background first; fp32.
        grid: h, w; P is their product.
        settings: limits and thresholds.

    Returns:
        Segments, best score first. Gradients flow from their scores alone.
    """
    embeddings, values = embeddings.detach(), logits.detach()
    seeds = choose_seeds(
        embeddings,
        rate_pixels(values),
        alpha=settings.alpha,
        max_seeds=settings.max_seeds,
        min_objective=settings.min_objective,
    ).pixels
    tau, classes, scores = find_best_class(logits[:, :, seeds])
    order = scores.argsort(descending=True, stable=True)
    seeds, tau, classes, scores = seeds[order], tau[order], classes[order], scores[order]
    limits = embeddings.new_tensor([find_limit(value) for value in settings.taus])
    masks = find_seed_masks(embeddings, seeds, limits[tau])  # (A, P)
    if settings.foreground_only:
        foreground = 1 - (values[:, 0] - values.logsumexp(dim=1)).exp()  # (T, P)
        masks &= (foreground > settings.foreground_thresh)[tau]
    compared = classes if settings.nms_per_class else torch.zeros_like(classes)
    kept = greedy_mask_nms(pack_masks(masks.view(-1, *grid)), compared, settings.nms_thresh)
    # Best first: what the limit of an image cuts off needs no margins, the largest tensor here.
    kept = kept[: settings.max_segments]
    owners, cells = masks[kept].nonzero(as_tuple=True)
    margins = measure_seed_similarity(embeddings, seeds[kept])
    margins -= embeddings.new_tensor(settings.taus)[tau[kept], None]
    if settings.foreground_only:
        margins.masked_fill_(~masks[kept], -1.0)
    return SeedSegments(owners, cells, grid, scores[kept], classes[kept], margins.view(-1, *grid))
