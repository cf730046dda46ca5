"""Deep metric learning: similarity of pixels, losses of their embeddings, seeds and their masks.

Fathi et al., "Semantic Instance Segmentation via Deep Metric Learning", arXiv 1703.10277;
De Brabandere et al., "Semantic Instance Segmentation with a Discriminative Loss Function",
arXiv 1708.02551.

The similarity of two pixels is 2 / (1 + exp(x)), in (0, 1], x the squared distance of their
embeddings. One minus it is tanh(x / 2), and it is t or more where x is log(2 / t - 1) or less.

Legend: D embedding size, P pixels, S sampled points, T thresholds, M objects, N images, A seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.embeddings import measure_norms, repulsion_loss
from instancezoo.layers.owners import average_by_owner

PAIR_WEIGHTS = ("sum", "product")
# Least squared distance of points of different objects: the logarithm of it is finite.
_LEAST_SQUARE = 1e-12
# Squared distance at which the similarity is 0 to the last bit of fp64.
_WHOLE_DIVERSITY = 80.0
# Bytes of working memory of the embedding's loss: all pairs of 1,900 points with D = 64.
_PAIRS_BUDGET = 2**30
# Distances from differences, not from products: they do not round, and their gradient at 0 is 0.
_EXACT = "donot_use_mm_for_euclid_dist"


def find_limit(threshold: float) -> float:
    """Largest squared distance at which the similarity reaches a threshold in (0, 1]."""
    return log(2 / threshold - 1)


def measure_similarity(squares: Tensor) -> Tensor:
    """Similarity in (0, 1] of pairs of pixels from their squared distances."""
    return 1 - (squares / 2).tanh()


def embedding_loss(
    embeddings: Tensor,
    owners: Tensor,
    sizes: Tensor,
    *,
    pair_weight: str = "sum",
    budget: int = _PAIRS_BUDGET,
) -> Tensor:
    """Cross-entropy of the similarity of all ordered pairs of an image's points (equation 2).

    The paper divides the weighted mean by S once more.

    Args:
        embeddings: (S, D), fp32 or fp64.
        owners: (S,) long, the object of each point.
        sizes: (S,), pixels of this object.
        pair_weight: weights are inverse to the "sum" or the "product" of two sizes.
        budget: bytes of working memory. Pairs beyond it are computed in pieces, and again for the
            gradient.

    Returns:
        (), the weighted mean over pairs; 0 without points.
    """
    if len(embeddings) == 0:
        return embeddings.sum()
    sizes = sizes.to(embeddings.dtype)
    # torch's gradient of distances takes D values a pair on a GPU.
    bytes_per_point = len(embeddings) * (embeddings.shape[1] + 8) * embeddings.element_size()
    parts = torch.arange(len(owners), device=owners.device).split(max(1, budget // bytes_per_point))
    if len(parts) == 1:
        sums = _sum_pairs(embeddings, owners, sizes, parts[0], pair_weight)
    else:
        pieces = [
            checkpoint(
                _sum_pairs,
                *(embeddings, owners, sizes, part, pair_weight),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part in parts
        ]
        sums = torch.stack(pieces).sum(dim=0)
    return -sums[0] / sums[1]


def _sum_pairs(
    embeddings: Tensor, owners: Tensor, sizes: Tensor, rows: Tensor, pair_weight: str
) -> Tensor:
    """(2,) sums of weighted logarithms and of weights, of pairs of the points `rows` with all."""
    squares = torch.cdist(embeddings[rows], embeddings, compute_mode=_EXACT).square()  # (R, S)
    far = squares.clamp(min=_LEAST_SQUARE)
    log_same = log(2) - squares - torch.log1p((-squares).exp())
    log_different = (-torch.expm1(-far)).log() - torch.log1p((-far).exp())
    mine = sizes[rows, None]
    weights = 1 / (mine * sizes if pair_weight == "product" else mine + sizes)
    logs = torch.where(owners[rows, None] == owners, log_same, log_different)
    return torch.stack([(weights * logs).sum(), weights.sum()])


def discriminative_terms(
    embeddings: Tensor,
    owners: Tensor,
    images: Tensor,
    *,
    pull_margin: float,
    push_margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of De Brabandere et al., each the mean over images with objects.

    Args:
        embeddings: (P, D), of the pixels of all objects; fp32 or fp64.
        owners: (P,) long, their objects.
        images: (P,) long, their images.
        pull_margin: delta_v, distance from the object's mean that costs nothing.
        push_margin: delta_d, half the distance between two means that costs nothing.

    Returns:
        Variance, distance and regularisation, () each.
    """
    present, owner = owners.unique(return_inverse=True)
    means = average_by_owner(embeddings, owner, len(present))  # (M, D)
    image = images.new_zeros(len(present)).scatter_(0, owner, images)  # (M,)
    known, image = image.unique(return_inverse=True)
    num_images = max(1, len(known))
    distances = measure_norms(embeddings - means[owner], 1)  # (P,)
    pulls = average_by_owner((distances - pull_margin).clamp(min=0).square(), owner, len(present))
    terms = torch.stack([pulls, measure_norms(means, 1)], dim=1)  # (M, 2)
    pull, size = average_by_owner(terms, image, len(known)).sum(dim=0) / num_images
    return pull, repulsion_loss(means, image, margin=push_margin) / num_images, size


@torch.no_grad()
def measure_best_ious(
    embeddings: Tensor,
    points: Tensor,
    labels: Tensor,
    limits: Sequence[float],
    *,
    budget: int = DEFAULT_BUDGET,
) -> tuple[Tensor, Tensor]:
    """How well the mask of each point matches an object: the best IoU over all objects.

    Args:
        embeddings: (D, P), fp32 or fp64.
        points: (S,) long, pixels.
        labels: (P,) long, 0 for none, 1 to M for an object's; -1: counts nowhere.
        limits: T squared distances; the mask is the pixels that are as near or nearer.
        budget: bytes of working memory.

    Returns:
        (T, S) IoU; (T, S) long, the object, from 0 on, the lowest of equally good ones. Both are 0
        without objects.
    """
    counts = labels.clamp(min=0).bincount(minlength=2)[1:]  # (M,)
    inside = (labels > 0).nonzero().squeeze(1)
    # Pixels of objects beside each other, so that one sum over a range counts an object's.
    inside = inside[labels[inside].argsort(stable=True)]
    stops = counts.cumsum(0)
    counted = labels >= 0
    ious, objects = [], []
    for part, squares in _measure_squares(embeddings, points, budget):
        for limit in limits:
            masks = squares <= limit  # (S', P)
            areas = (masks & counted).sum(dim=1)
            sums = masks[:, inside].cumsum(dim=1, dtype=torch.int32)
            sums = torch.cat([sums.new_zeros(len(part), 1), sums], dim=1)
            shared = (sums[:, stops] - sums[:, stops - counts]).to(embeddings.dtype)  # (S', M)
            unions = areas[:, None] + counts - shared
            iou, best = (shared / unions.clamp(min=1)).max(dim=1)
            ious.append(iou)
            objects.append(best)
    return _join(ious, len(limits)), _join(objects, len(limits))


def _join(parts: list[Tensor], num_rows: int) -> Tensor:
    """Rows that come in turns, in pieces -> (T, S)."""
    return torch.stack([torch.cat(parts[row::num_rows]) for row in range(num_rows)])


def _measure_squares(
    embeddings: Tensor, points: Tensor, budget: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces (S',) of points and their squared distances (S', P) from all pixels (D, P)."""
    bytes_per_point = 6 * embeddings.element_size() * max(1, embeddings.shape[1])
    embeddings = embeddings - embeddings.mean(dim=1, keepdim=True)  # small products round less
    norms = embeddings.square().sum(dim=0)  # (P,)
    for part in points.split(max(1, budget // bytes_per_point)) or [points]:
        with torch.autocast(embeddings.device.type, enabled=False):
            products = torch.addmm(norms, embeddings[:, part].T, embeddings, alpha=-2)
        yield part, products.add_(norms[part, None]).clamp_(min=0)


@dataclass(frozen=True)
class Seeds:
    """Pixels that stand for objects, in the order of their choice.

    Attributes:
        pixels: (A,) long.
        objectives: (A,), log of the seediness plus alpha times log of the diversity.
    """

    pixels: Tensor
    objectives: Tensor


@torch.no_grad()
def choose_seeds(
    embeddings: Tensor, seediness: Tensor, *, alpha: float, max_seeds: int, min_objective: float
) -> Seeds:
    """Choose confident pixels that are unlike each other, one after the other (section 3.3).

    The next one has the largest log of its seediness plus alpha times the log of its diversity, one
    minus its largest similarity to a chosen one; the first of equal ones. The objective never
    grows, so that pixels below its least value cost nothing any more.

    Args:
        embeddings: (D, P), fp32 or fp64.
        seediness: (P,), in [0, 1].
        alpha: 0 or more.
        max_seeds: most seeds.
        min_objective: exponential of the least objective, in [0, 1]. A pixel of objective -inf is
            no seed at all.
    """
    least = log(min_objective) if min_objective > 0 else -inf
    scores = seediness.log()
    alive = ((scores >= least) & (scores > -inf)).nonzero().squeeze(1)
    points, scores = embeddings.T[alive], scores[alive]  # (P, D)
    nearest = torch.full_like(scores, _WHOLE_DIVERSITY)  # squared distance of a chosen one
    objectives = scores.clone()
    pixels: list[Tensor] = []
    values: list[Tensor] = []
    while len(pixels) < max_seeds and len(alive):
        best = int(objectives.argmax())
        value = objectives[best].clone()
        if not (value >= least and value > -inf):
            break
        pixels.append(alive[best])
        values.append(value)
        squares = torch.cdist(points, points[best, None], compute_mode=_EXACT).square()[:, 0]
        nearer = (squares < nearest).nonzero().squeeze(1)
        squares = squares[nearer]
        nearest[nearer] = squares
        diversity = (squares / 2).tanh()
        penalties = torch.xlogy(diversity.new_tensor(alpha), diversity)
        objectives[nearer] = torch.minimum(objectives[nearer], scores[nearer] + penalties)
        objectives[best] = -inf
        remain = (objectives >= least) & (objectives > -inf)
        if 2 * int(remain.sum()) < len(alive):
            alive, points, nearest = alive[remain], points[remain], nearest[remain]
            scores, objectives = scores[remain], objectives[remain]
    if not pixels:
        return Seeds(alive.new_zeros(0), scores.new_zeros(0))
    return Seeds(torch.stack(pixels), torch.stack(values))


@torch.no_grad()
def find_seed_masks(
    embeddings: Tensor, seeds: Tensor, limits: Tensor, *, budget: int = DEFAULT_BUDGET
) -> Tensor:
    """Masks of seeds: the pixels that are similar enough, wherever they are.

    Args:
        embeddings: (D, P), fp32 or fp64.
        seeds: (A,) long, pixels.
        limits: (A,), largest squared distance of each.
        budget: bytes of working memory.

    Returns:
        (A, P) bool.
    """
    masks = torch.zeros(len(seeds), embeddings.shape[1], dtype=torch.bool, device=seeds.device)
    start = 0
    for part, squares in _measure_squares(embeddings, seeds, budget):
        stop = start + len(part)
        torch.le(squares, limits[start:stop, None], out=masks[start:stop])
        start = stop
    return masks


@torch.no_grad()
def measure_seed_similarity(
    embeddings: Tensor, seeds: Tensor, *, budget: int = DEFAULT_BUDGET
) -> Tensor:
    """Similarity (A, P) of seeds to all pixels; arguments as in `find_seed_masks`."""
    similarity = embeddings.new_empty(len(seeds), embeddings.shape[1])
    start = 0
    for part, squares in _measure_squares(embeddings, seeds, budget):
        stop = start + len(part)
        similarity[start:stop] = measure_similarity(squares)
        start = stop
    return similarity
