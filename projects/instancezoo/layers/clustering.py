"""Pixels to clusters by their embeddings, as pure functions.

Legend: D embedding size, P pixels, M clusters, H W map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.owners import average_by_owner


@dataclass(frozen=True)
class Clusters:
    """Clusters of some pixels.

    Attributes:
        labels: (P,) long, 1 to M; 0: in no cluster.
        centres: (M, D).
        seeds: (M,) long, the pixel that each cluster began with; empty where there is none.
    """

    labels: Tensor
    centres: Tensor
    seeds: Tensor


@torch.no_grad()
def group_greedily(
    embeddings: Tensor,
    scores: Tensor,
    *,
    radius: float,
    seed_thresh: float,
    num_shifts: int,
    min_size: int,
    max_clusters: int,
    max_misses: int,
) -> Clusters:
    """Grow clusters one after the other, from the most confident free pixel each.

    The centre starts at the seed and moves `num_shifts` times to the mean of the free pixels within
    the radius. The cluster is what lies within the radius then, and the seed; it is no longer free,
    even where it is too small to be kept. One pass over one axis of the free pixels finds those
    that a centre can reach; the others cost nothing.

    Args:
        embeddings: (D, P).
        scores: (P,); the first of equal ones comes first.
        radius: distance from the centre, inclusive.
        seed_thresh: seeds have this score or more.
        num_shifts: 0 or more.
        min_size: fewest pixels of a cluster.
        max_clusters: clusters kept.
        max_misses: clusters that are too small, after which it gives up.

    Returns:
        Clusters in the order of their seeds.
    """
    labels = torch.zeros_like(scores, dtype=torch.long)
    order = scores.argsort(descending=True, stable=True)  # the first free pixel is the next seed
    points, is_free = embeddings[:, order], torch.ones_like(order, dtype=torch.bool)
    num_seeds, num_taken, num_misses = int((scores >= seed_thresh).sum()), 0, 0
    limit = (num_shifts + 1) * radius * (1 + 64 * torch.finfo(embeddings.dtype).eps)
    centres, seeds = embeddings.new_zeros(0, len(embeddings)), order[:0]
    while len(centres) < max_clusters and num_misses < max_misses:
        first = int(is_free.to(torch.uint8).argmax()) if num_taken < len(order) else num_seeds
        if first >= num_seeds:
            break
        # No centre and no member is farther from the seed, along any axis.
        near = (is_free & ((points[0] - points[0, first]).abs_() <= limit)).nonzero().squeeze(1)
        centre, inside = _shift(points[:, near], points[:, first], radius, num_shifts)
        inside[0] = True  # the seed
        members = near[inside]
        if len(members) >= min_size:
            centres = torch.cat([centres, centre[None]])
            seeds = torch.cat([seeds, order[first][None]])
            labels[order[members]] = len(centres)
        else:
            num_misses += 1
        is_free[members] = False
        num_taken += len(members)
        if 2 * num_taken > len(order):
            num_seeds = int(is_free[:num_seeds].sum())
            order, points, num_taken = order[is_free], points[:, is_free], 0
            is_free = torch.ones_like(order, dtype=torch.bool)
    return Clusters(labels, centres, seeds)


@torch.no_grad()
def cluster_k_means(embeddings: Tensor, centres: Tensor, *, max_rounds: int = 100) -> Clusters:
    """Lloyd's k-means from given centres; an empty cluster keeps its centre.

    Args:
        embeddings: (D, P).
        centres: (M, D).
        max_rounds: fewer if the centres repeat.

    Returns:
        Clusters, the nearest centre for each pixel; the first of equally near ones.
    """
    nearest, points = assign_nearest(embeddings, centres), embeddings.T.contiguous()
    for _ in range(max_rounds if len(centres) else 0):
        counts = nearest.bincount(minlength=len(centres))
        means = average_by_owner(points, nearest, len(centres))
        moved = torch.where(counts[:, None] > 0, means, centres)
        if torch.equal(moved, centres):
            break
        centres, nearest = moved, assign_nearest(embeddings, moved)
    return Clusters(nearest + 1, centres, nearest.new_zeros(0))


@torch.no_grad()
def cluster_votes(
    points: Tensor, size: tuple[int, int], *, window: int, min_votes: int, max_clusters: int
) -> Clusters:
    """Count the pixels that point at each cell of a map, and give each to the nearest maximum.

    Args:
        points: (2, P) x and y where the pixels point at, in cells; those beyond the map count for
            its border.
        size: H, W.
        window: side in cells of the square in which a maximum is the largest, odd.
        min_votes: fewest votes of a maximum.
        max_clusters: maxima kept, those with most votes.

    Returns:
        Clusters with centres (M, 2).
    """
    height, width = size
    limits = points.new_tensor([[width - 1], [height - 1]])
    x, y = torch.minimum(points.round().clamp(min=0), limits).long()
    votes = (y * width + x).bincount(minlength=height * width)
    # Equal numbers of votes: the first cell in row-major order is the maximum.
    ranks = votes * (height * width) - torch.arange(height * width, device=votes.device)
    voted = votes.nonzero().squeeze(1)
    order = voted[ranks[voted].argsort()]
    places = torch.zeros_like(votes)
    places[order] = torch.arange(1, len(order) + 1, device=votes.device)
    grid = places.view(1, 1, height, width).float()  # exact up to 2^24 cells with votes
    largest = F.max_pool2d(grid, window, stride=1, padding=window // 2)
    is_peak = (largest == grid).flatten() & (votes >= max(1, min_votes))
    peaks = is_peak.nonzero().squeeze(1)
    peaks = peaks[ranks[peaks].argsort(descending=True)][:max_clusters]
    centres = torch.stack([peaks % width, peaks // width], dim=1).to(points.dtype)
    if len(peaks) == 0:
        return Clusters(torch.zeros_like(x), centres, peaks)
    return Clusters(assign_nearest(points, centres) + 1, centres, peaks.new_zeros(0))


@torch.no_grad()
def cluster_mean_shift(
    points: Tensor,
    *,
    bandwidth: float,
    min_size: int,
    max_clusters: int,
    max_misses: int,
    max_rounds: int = 50,
    tolerance: float = 1e-9,
) -> Clusters:
    """Mean shift with a flat kernel, from the first free pixel each (De Brabandere et al.).

    The centre moves to the mean of all pixels nearer than the bandwidth, free or not, until it
    rests. The cluster is the free ones of them, and the pixel that it began with; they are no
    longer free, even where they are too few. Only pixels that are near on one axis are looked at.

    Args:
        points: (D, P), fp32 or fp64.
        bandwidth: distance from the centre, exclusive.
        min_size: fewest pixels of a cluster.
        max_clusters: clusters kept.
        max_misses: clusters that are too small, after which it gives up.
        max_rounds: most moves of a centre.
        tolerance: a centre that moves less rests.

    Returns:
        Clusters in the order of their first pixels.
    """
    num_points = points.shape[1]
    axis = int(points.var(dim=1).argmax()) if num_points > 1 else 0
    order = points[axis].argsort(stable=True)
    line, rows, places = points[axis, order], points.T[order], order.argsort()
    labels, is_free = torch.zeros_like(order), torch.ones_like(order, dtype=torch.uint8)
    centres, seeds = points.new_zeros(0, len(points)), order[:0]
    first = num_misses = 0
    while first < num_points and len(centres) < max_clusters and num_misses < max_misses:
        first += int(is_free[first:].argmax())
        if not is_free[first]:
            break
        centre = points[:, first]
        for _ in range(max_rounds):
            before, near = centre, _find_near(rows, line, axis, centre, bandwidth)
            centre = rows[near].mean(dim=0) if len(near) else before
            if float((centre - before).norm()) < tolerance:
                break
        near = _find_near(rows, line, axis, centre, bandwidth)
        near = torch.cat([near, places[first, None]]).unique()
        members = near[is_free[order[near]].bool()]
        if len(members) >= min_size:
            centres = torch.cat([centres, centre[None]])
            seeds = torch.cat([seeds, seeds.new_tensor([first])])
            labels[order[members]] = len(centres)
        else:
            num_misses += 1
        is_free[order[members]] = 0
    return Clusters(labels, centres, seeds)


def _find_near(rows: Tensor, line: Tensor, axis: int, centre: Tensor, bandwidth: float) -> Tensor:
    """Indices (A,) of rows (P, D), sorted by an axis (P,), that are nearer to a centre (D,)."""
    reach = bandwidth * (1 + 64 * torch.finfo(rows.dtype).eps)
    limits = torch.stack([centre[axis] - reach, centre[axis] + reach])
    first, stop = torch.searchsorted(line, limits, right=True).tolist()
    mode = "donot_use_mm_for_euclid_dist"  # differences, not products: they do not round
    distances = torch.cdist(rows[first:stop], centre[None], compute_mode=mode)[:, 0]
    return (distances < bandwidth).nonzero().squeeze(1) + first


def assign_nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point; the first of equally near ones.

    Args:
        points: (D, P).
        centres: (M, D), M is 1 or more unless P is 0.

    Returns:
        (P,) long.
    """
    size = max(1, DEFAULT_BUDGET // (3 * points.element_size() * max(1, len(centres))))
    nearest = []
    for part in points.split(size, dim=1):
        squares = part.new_zeros(part.shape[1], len(centres))
        for axis, values in enumerate(part):  # differences, not products: they are exact
            squares += (values[:, None] - centres[:, axis]).square_()
        nearest.append(squares.argmin(dim=1))
    return torch.cat(nearest) if nearest else points.new_zeros(0, dtype=torch.long)


def drop_small(clusters: Clusters, min_size: int) -> Clusters:
    """Clusters of `min_size` pixels or more; their labels stay consecutive."""
    num_clusters = len(clusters.centres)
    kept = clusters.labels.bincount(minlength=num_clusters + 1)[1:] >= min_size  # (M,)
    numbers = F.pad(kept.cumsum(0) * kept, (1, 0))  # (M + 1,)
    seeds = clusters.seeds[kept] if len(clusters.seeds) else clusters.seeds
    return Clusters(numbers[clusters.labels], clusters.centres[kept], seeds)


def _shift(points: Tensor, centre: Tensor, radius: float, num_shifts: int) -> tuple[Tensor, Tensor]:
    """Move a centre (D,) by mean shift; returns it and which points (D, P) lie around it."""
    for _ in range(num_shifts):
        inside = _square_distances(points, centre) <= radius**2
        count = inside.sum()
        mean = (points * inside).sum(dim=1) / count.clamp(min=1)
        centre = torch.where(count > 0, mean, centre)  # without points it stays for good
    return centre, _square_distances(points, centre) <= radius**2


def _square_distances(points: Tensor, centre: Tensor) -> Tensor:
    """(D, P) and (D,) -> (P,)."""
    return (points - centre[:, None]).square_().sum(dim=0)
