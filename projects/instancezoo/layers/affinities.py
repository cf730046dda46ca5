"""Affinities of cells to their neighbours in a square window: targets, loss, weights of a graph.

Channel j of a window of r x r belongs to the offset (j // r - r // 2, j % r - r // 2): it is the
affinity of a cell with the cell at that offset. The channels of a pair in both directions are j and
r * r - 1 - j; the channel of the centre is unused.

Legend: N images, C classes with the background, h w size of the map, r side of the window, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET

# Affinities keep this distance from 0 and 1: their log-odds stay finite.
EPS = 1e-5
# Copies of the classes' probabilities that a pair needs at once.
_COPIES = 4


@dataclass(frozen=True)
class Pairs:
    """Pairs of cells within a window, each once.

    Attributes:
        first, second: (P,) long, numbers of the cells in row-major order.
        channels: (P,) long, of the offset from the first to the second cell.
    """

    first: Tensor
    second: Tensor
    channels: Tensor


def compare_neighbours(ids: Tensor, is_counted: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Which neighbours have the same id, and which pairs there are at all.

    Args:
        ids: (N, h, w) long, 0 or more; 0 is an id as any other.
        is_counted: (N, h, w) bool, cells that pairs may have.
        window: r, odd.

    Returns:
        (N, r*r, h, w) bool each. A pair that leaves the map is none, so is one with a cell that
        does not count; its ids are not the same.
    """
    reach = window // 2
    inside = F.pad(ids.masked_fill(~is_counted, -1), [reach] * 4, value=-1)
    around = inside.unfold(1, window, 1).unfold(2, window, 1)  # (N, h, w, r, r), a view
    around = around.permute(0, 3, 4, 1, 2)  # (N, r, r, h, w)
    is_pair = (around >= 0) & is_counted[:, None, None]
    is_same = (around == ids[:, None, None]) & is_pair
    return is_same.flatten(1, 2), is_pair.flatten(1, 2)


def drop_positives(is_same: Tensor, share: float) -> Tensor:
    """Choose at random the pairs of one object that the loss leaves out.

    Args:
        is_same: bool, of any shape.
        share: of the pairs that are dropped, in [0, 1].

    Returns:
        bool of the same shape, the dropped pairs.
    """
    return is_same & (torch.rand(is_same.shape, device=is_same.device) < share)


def affinity_loss(
    logits: Tensor,
    is_same: Tensor,
    is_pair: Tensor,
    is_dropped: Tensor,
    is_object: Tensor,
    *,
    object_weight: float,
) -> Tensor:
    """Squared error of affinities, averaged over all pairs, those that are dropped included.

    Args:
        logits: (N, r*r, h, w), fp32 or fp64.
        is_same, is_pair: from `compare_neighbours`.
        is_dropped: (N, r*r, h, w) bool, pairs that are left out of the sum.
        is_object: (N, h, w) bool, cells whose pairs weigh `object_weight` instead of 1.
        object_weight: 0 or more.

    Returns:
        ()
    """
    weights = 1 + (object_weight - 1) * is_object[:, None].to(logits.dtype)
    weights = weights * (is_pair & ~is_dropped)
    errors = (logits.sigmoid() - is_same.to(logits.dtype)) ** 2
    return (weights * errors).sum() / is_pair.sum().clamp(min=1)


def find_pairs(nodes: Tensor, window: int) -> Pairs:
    """List the pairs of cells of different nodes in a window, by first cell, then by channel.

    Args:
        nodes: (h, w) long, the node of each cell; below 0 for none.
        window: r, odd.
    """
    height, width = nodes.shape
    reach = window // 2
    parts = []
    for channel in range(window * window // 2 + 1, window * window):
        down, right = channel // window - reach, channel % window - reach  # down is 0 or more
        left = max(0, -right)
        rows, columns = max(0, height - down), max(0, width - abs(right))
        first = nodes[:rows, left : left + columns]
        second = nodes[down:, left + right :][:rows, :columns]
        y, x = ((first >= 0) & (second >= 0) & (first != second)).nonzero(as_tuple=True)
        cells = y * width + x + left
        parts.append((cells, cells + down * width + right, torch.full_like(cells, channel)))
    first, second, channels = (torch.cat(column) for column in zip(*parts, strict=True))
    order = first.argsort(stable=True)
    return Pairs(first[order], second[order], channels[order])


def weigh_pairs(logits: Tensor, probs: Tensor, pairs: Pairs, *, eps: float = EPS) -> Tensor:
    """Log-odds that both cells of a pair are of one object (SSAP).

    The affinity is the mean of both directions', times exp(-JS) of the classes' probabilities.

    Args:
        logits: (r*r, h, w), of the affinities.
        probs: (C, h, w), of the classes.
        pairs: P.
        eps: affinities are kept within [eps, 1 - eps].

    Returns:
        (P,)
    """
    num_channels, num_cells = len(logits), logits[0].numel()
    flat = logits.flatten()
    forward = flat[pairs.channels * num_cells + pairs.first].sigmoid()
    backward = flat[(num_channels - 1 - pairs.channels) * num_cells + pairs.second].sigmoid()
    divergences = diverge_between(probs.flatten(1), pairs.first, pairs.second)
    affinities = (forward + backward) / 2 * (-divergences).exp()
    return affinities.clamp(eps, 1 - eps).logit()


def diverge_between(probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of two columns of probabilities each.

    Args:
        probs: (C, V), each column sums to 1.
        first, second: (P,) long, columns.

    Returns:
        (P,), in [0, log 2].
    """
    rows = probs.T.contiguous()  # (V, C)
    entropies = _measure_entropy(rows)
    size = max(1, DEFAULT_BUDGET // (_COPIES * rows.shape[1] * rows.element_size()))
    parts = [
        _measure_entropy((rows[a] + rows[b]) / 2) - (entropies[a] + entropies[b]) / 2
        for a, b in zip(first.split(size), second.split(size), strict=True)
    ]
    return torch.cat(parts).clamp(min=0)


def _measure_entropy(rows: Tensor) -> Tensor:
    """(..., C) -> (...), in nats."""
    return torch.special.entr(rows).sum(dim=-1)
