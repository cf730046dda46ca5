"""Losses of a batch: embeddings and seeds.

Legend: N images, D embedding size, S points, T thresholds, K classes, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.metric import (
    discriminative_terms,
    embedding_loss,
    find_limit,
    measure_best_ious,
)
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps, class_loss

from .head import MetricMaps
from .targets import (
    Points,
    label_points,
    list_object_classes,
    sample_background,
    sample_object_points,
)


@dataclass(frozen=True)
class LossSettings:
    """Keys of MODEL.METRIC of the same meaning."""

    kind: str = "metric"
    embed: float = 1.0
    num_samples: int = 10
    sample_background: bool = False
    pair_weight: str = "sum"
    pull_margin: float = 0.5
    push_margin: float = 1.5
    pull: float = 1.0
    push: float = 1.0
    regularisation: float = 0.001
    seed: float = 0.2
    seed_ramp_iters: int = 0
    seed_iou: float = 0.5
    semantic: float = 1.0


def sample_points(
    targets: ObjectMaps, background: int, settings: LossSettings
) -> tuple[Points, Points]:
    """Points of the objects, and as many of the background in each image.

    An image without objects has as many of the background as one object has.

    Args:
        targets: painted objects.
        background: the background's class.
        settings: numbers of points.
    """
    points = sample_object_points(targets, settings.num_samples)
    numbers = points.images.bincount(minlength=len(targets.counts))
    numbers = numbers.clamp(min=settings.num_samples)
    return points, sample_background(targets, background, numbers)


def compute_embed_loss(embeddings: Tensor, points: Points, settings: LossSettings) -> Tensor:
    """Equation 2 for embeddings (N, D, h, w), the mean over images with points: ()."""
    by_cell = embeddings.flatten(2).transpose(1, 2)  # (N, h*w, D)
    losses = []
    for index in points.images.unique().tolist():
        mine = (points.images == index).nonzero().squeeze(1)
        chosen = by_cell[index, points.cells[mine]]
        owners, sizes = points.owners[mine], points.sizes[mine]
        losses.append(embedding_loss(chosen, owners, sizes, pair_weight=settings.pair_weight))
    return torch.stack(losses).mean() if losses else 0 * embeddings.sum()


def compute_discriminative_loss(
    embeddings: Tensor, targets: ObjectMaps, background: int, settings: LossSettings
) -> Tensor:
    """The loss of De Brabandere et al. for embeddings (N, D, h, w) of all cells of objects: ().

    Args:
        embeddings: fp32 or fp64.
        targets: painted objects.
        background: class that counts as one more object of each image, if settings say so.
        settings: margins and weights of the terms.
    """
    image, cell = (targets.ids.flatten(1) > 0).nonzero(as_tuple=True)
    owner = targets.list_cells()[0]
    if settings.sample_background:
        others, cells = (targets.classes.flatten(1) == background).nonzero(as_tuple=True)
        owner = torch.cat([owner, sum(targets.counts) + others])
        image, cell = torch.cat([image, others]), torch.cat([cell, cells])
    pull, push, size = discriminative_terms(
        embeddings.flatten(2).transpose(1, 2)[image, cell],
        owner,
        image,
        pull_margin=settings.pull_margin,
        push_margin=settings.push_margin,
    )
    return settings.pull * pull + settings.push * push + settings.regularisation * size


def seed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the classifiers of all thresholds, the mean over points and thresholds.

    Args:
        logits: (T, S, K + 1), background first.
        targets: (T, S) long, see `label_points`.

    Returns:
        (), 0 without points.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return losses / max(1, targets.numel())


def compute_seed_loss(
    maps: MetricMaps,
    targets: ObjectMaps,
    points: Points,
    taus: Sequence[float],
    settings: LossSettings,
) -> Tensor:
    """Cross-entropy of the seeds' classifiers at points of objects and background: ()

    Labels follow from the embeddings as they are now; no gradient reaches them.
    """
    limits = [find_limit(tau) for tau in taus]
    logits, labels = [], []
    for index in range(len(targets.counts)):
        mine = points.cells[points.images == index]
        ids, classes = targets.ids[index], targets.classes[index]
        ious, objects = measure_best_ious(
            maps.embeddings[index].detach().flatten(1),
            mine,
            ids.masked_fill((classes == IGNORED) & (ids == 0), -1).flatten(),
            limits,
        )
        known = list_object_classes(ids, classes)
        labels.append(label_points(ious, objects, known, settings.seed_iou))
        logits.append(maps.logits[index].flatten(2)[:, :, mine].transpose(1, 2).float())
    return seed_loss(torch.cat(logits, dim=1), torch.cat(labels, dim=1))


def semantic_loss(logits: Tensor, targets: ObjectMaps) -> Tensor:
    """Cross-entropy of each cell's own class, the mean over cells that count.

    Args:
        logits: (N, K + 1, h, w), background first.
        targets: painted objects.
    """
    # The maps of classes have the background last.
    return class_loss(logits.roll(-1, dims=1), targets.classes)
