"""Detections of one object in several copies of an image: found, and merged into one.

Legend: M detections of all copies, best score first, G groups, A copies, R detections of a chunk,
B pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET

# Bytes per pair of detections of a chunk: its IoU in fp64 and the comparisons made with it.
_BYTES_PER_PAIR = 16


@dataclass(frozen=True)
class CopyGroups:
    """Detections in groups, each of one object.

    Attributes:
        leaders: (G,) long, ascending, the best detection of each group.
        members: (V,) long, ascending, the best detection of each group in each copy, leaders
            included.
        group: (V,) long, the group of each member, in [0, G).
        copy: (V,) long, the copy of each member, in [0, A).
        num_copies: A.
    """

    leaders: Tensor
    members: Tensor
    group: Tensor
    copy: Tensor
    num_copies: int

    def average_scores(self, scores: Tensor) -> Tensor:
        """Mean over the copies, (G,); a copy without the object counts as 0.

        Args:
            scores: (M,).
        """
        table = scores.new_zeros((len(self.leaders), self.num_copies))
        table[self.group, self.copy] = scores[self.members]
        return table.mean(dim=1)

    def average_boxes(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Mean of the members' boxes, weighted by their scores: (G, 4).

        Args:
            boxes: (M, 4).
            scores: (M,).
        """
        leading = boxes[self.leaders]
        weights = scores[self.members].clamp(min=torch.finfo(scores.dtype).tiny)
        # Differences, so that the box of a single member stays as it is to the last bit.
        shifts = (boxes[self.members] - leading[self.group]) * weights[:, None]
        totals = weights.new_zeros(len(leading)).index_add(0, self.group, weights)
        return (
            leading + torch.zeros_like(leading).index_add(0, self.group, shifts) / totals[:, None]
        )


def group_detections(
    compute_ious: Callable[[slice], Tensor],
    classes: Tensor,
    copies: Tensor,
    *,
    num_copies: int,
    min_iou: float,
    budget: int = DEFAULT_BUDGET,
) -> CopyGroups:
    """Group detections of one class in different copies that overlap.

    As in NMS, a detection without a better one that overlaps leads a group, and the others join the
    leader that they overlap most. Detections of the same copy do not compete: the model has
    already told them apart, so a single copy keeps all its detections.

    Args:
        compute_ious: rows -> IoU of these detections with all, (R, M).
        classes: (M,) long, best score first.
        copies: (M,) long, in [0, num_copies).
        num_copies: A.
        min_iou: smallest overlap of one object in two copies.
        budget: bytes of working memory.
    """
    better, worse, ious = _find_pairs(compute_ious, classes, copies, min_iou, budget)
    count = len(classes)
    leads, before = torch.ones_like(classes, dtype=torch.bool), None
    # Each round settles at least the first detection that was not; a few rounds settle all.
    while before is None or not torch.equal(leads, before):
        before, leads = leads, torch.ones_like(leads)
        leads[worse[before[better]]] = False
    leader = torch.arange(count, device=classes.device)
    chosen = leads[better] & ~leads[worse]
    better, worse, ious = better[chosen], worse[chosen], ious[chosen]
    order = ious.argsort(descending=True, stable=True)
    order = order[worse[order].argsort(stable=True)]
    nearest = order[_find_firsts(worse[order])]
    leader[worse[nearest]] = better[nearest]
    group = (leads.cumsum(0) - 1)[leader]
    key = group * num_copies + copies
    order = key.argsort(stable=True)
    members = order[_find_firsts(key[order])].sort().values
    return CopyGroups(
        leaders=leads.nonzero().squeeze(1),
        members=members,
        group=group[members],
        copy=copies[members],
        num_copies=num_copies,
    )


def _find_pairs(
    compute_ious: Callable[[slice], Tensor],
    classes: Tensor,
    copies: Tensor,
    min_iou: float,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a better and a worse detection of one object: their indices and IoU, (B,) each."""
    count = len(classes)
    size = max(1, budget // (_BYTES_PER_PAIR * max(count, 1)))
    rank = torch.arange(count, device=classes.device)
    found = [(rank[:0], rank[:0], rank[:0].double())]
    for start in range(0, count, size):
        rows = slice(start, start + size)
        ious = compute_ious(rows)  # (R, M)
        is_pair = (ious >= min_iou) & (classes[rows, None] == classes)
        is_pair &= (copies[rows, None] != copies) & (rank[rows, None] < rank)
        row, column = is_pair.nonzero(as_tuple=True)
        found.append((row + start, column, ious[row, column].double()))
    better, worse, overlaps = zip(*found, strict=True)
    return torch.cat(better), torch.cat(worse), torch.cat(overlaps)


def _find_firsts(values: Tensor) -> Tensor:
    """Where a value of an ascending (M,) tensor occurs first: (M,) bool."""
    firsts = torch.ones_like(values, dtype=torch.bool)
    firsts[1:] = values[1:] != values[:-1]
    return firsts
