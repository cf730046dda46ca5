"""The graphs of all levels, partitioned from coarse to fine.

A coarse level decides what lies well inside an object; only the rest of a finer level is decided
anew. Maps of labels hold 0 for cells without a segment, and number segments by first appearance in
row-major order.

Legend: C classes with the background, h w size of a level, r side of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.layers.affinities import find_pairs, weigh_pairs
from instancezoo.layers.graph_partition import contract_greedily, partition_by_mutexes

Partition = Callable[[Tensor, Tensor, int], Tensor]
PARTITIONS: dict[str, Partition] = {"gaec": contract_greedily, "mutex": partition_by_mutexes}


@dataclass(frozen=True)
class LevelMaps:
    """What a level says of one image.

    Attributes:
        affinity_logits: (r*r, h, w).
        probs: (C, h, w), of the classes.
        foreground: (h, w) bool.
    """

    affinity_logits: Tensor
    probs: Tensor
    foreground: Tensor


def partition_levels(
    levels: Sequence[LevelMaps], *, window: int, partition: Partition
) -> list[Tensor]:
    """Segments of every level.

    Args:
        levels: finest first, each of twice the sides of the next, which are rounded up.
        window: r.
        partition: a value of `PARTITIONS`.

    Returns:
        Labels (h, w) long, in the order of the levels.
    """
    results: list[Tensor] = []
    carried = torch.zeros_like(levels[-1].foreground, dtype=torch.long)
    for level in reversed(levels):
        if results:
            carried = carry_over(results[-1], level.foreground.shape)
        nodes = number_nodes(level.foreground, carried)
        results.append(partition_nodes(nodes, level, window, partition))
    return results[::-1]


def partition_nodes(nodes: Tensor, level: LevelMaps, window: int, partition: Partition) -> Tensor:
    """Labels (h, w) long of the parts of a graph whose nodes (h, w) are groups of cells."""
    pairs = find_pairs(nodes, window)
    weights = weigh_pairs(level.affinity_logits, level.probs, pairs)
    flat = nodes.flatten()
    edges = torch.stack([flat[pairs.first], flat[pairs.second]], dim=1)
    parts = partition(edges, weights, int(nodes.max()) + 1 if len(flat) else 0)
    table = torch.cat([parts + 1, parts.new_zeros(1)])  # the last for -1, no node
    return table[nodes]


def number_nodes(foreground: Tensor, carried: Tensor) -> Tensor:
    """Nodes of a level: segments that are carried over, and every other cell of the foreground.

    Args:
        foreground: (h, w) bool.
        carried: (h, w) long, labels of the coarser level or 0; such a cell is foreground.

    Returns:
        (h, w) long, -1 for none; nodes are numbered by first appearance.
    """
    labels = carried.flatten()
    cells = torch.arange(len(labels), device=labels.device)
    firsts = cells.new_full((int(labels.max()) + 1 if len(labels) else 1,), len(labels))
    firsts = firsts.scatter_reduce(0, labels, cells, "amin")
    leaders = torch.where(labels > 0, firsts[labels], cells)  # the first cell of each one's node
    exists = (labels > 0) | foreground.flatten()
    numbers = ((leaders == cells) & exists).cumsum(0) - 1
    return torch.where(exists, numbers[leaders], -1).view_as(carried)


def carry_over(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Give the cells inside each segment to the finer level, as blocks of 2 x 2.

    A cell is inside if its four neighbours exist and are of its segment.

    Args:
        labels: (h, w) long.
        size: rows and columns of the finer level.

    Returns:
        Labels of this size, 0 where nothing is carried over.
    """
    inside = torch.zeros_like(labels)
    centre = labels[1:-1, 1:-1]
    neighbours = (labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:])
    same = torch.stack([neighbour == centre for neighbour in neighbours]).all(dim=0)
    inside[1:-1, 1:-1] = centre * same
    blocks = inside.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    return blocks[: size[0], : size[1]]


def drop_segments(labels: Tensor, foreground: Tensor, min_size: int) -> Tensor:
    """Labels without segments that are too small or have no foreground cell; renumbered.

    Args:
        labels: (h, w) long.
        foreground: (h, w) bool.
        min_size: in cells.
    """
    sizes = labels.flatten().bincount()
    kept = (sizes >= min_size) & (labels[foreground].bincount(minlength=len(sizes)) > 0)
    kept[:1] = False  # no segment
    return (kept.cumsum(0) * kept)[labels]
