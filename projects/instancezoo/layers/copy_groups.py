"""Detections of one object in several copies of an image: found, and merged into one.

Legend: M detections of all copies, best score first, V members of groups, G groups, A copies,
R detections of a chunk, L leaders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def merge_scores(self, scores: Tensor) -> Tensor:
        """Half of the best score and half of the mean over the copies, (G,).

        In the mean, a copy without the object counts as 0, so that objects that many copies show
        rank before those of one; half of it, as copies of some sizes cannot show every object.

        Args:
            scores: (M,).
        """
        table = scores.new_zeros((len(self.leaders), self.num_copies))
        table[self.group, self.copy] = scores[self.members]
        return (table.amax(dim=1) + table.mean(dim=1)) / 2

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
    compute_ious: Callable[[Tensor, Tensor], Tensor],
    classes: Tensor,
    copies: Tensor,
    *,
    num_copies: int,
    min_iou: float,
    chunk_size: int = 128,
) -> CopyGroups:
    """Group detections of one class in different copies that overlap.

    As in NMS, a detection without a better one that overlaps leads a group, and the others join the
    leader that they overlap most. Detections of the same copy do not compete: the model has
    already told them apart, so a single copy keeps all its detections.

    Args:
        compute_ious: indices (R,) and (L,) -> IoU of each pair of detections, (R, L).
        classes: (M,) long, best score first.
        copies: (M,) long, in [0, num_copies).
        num_copies: A.
        min_iou: smallest overlap of one object in two copies.
        chunk_size: number of detections that are compared with all leaders at once.
    """
    rank = torch.arange(len(classes), device=classes.device)
    leader = rank.clone()
    leaders = rank[:0]
    for rows in rank.split(chunk_size) if len(rank) else ():
        columns = torch.cat([leaders, rows])
        ious = compute_ious(rows, columns)  # (R, L)
        rivals = (ious >= min_iou) & (classes[rows, None] == classes[columns])
        rivals &= (copies[rows, None] != copies[columns]) & (columns < rows[:, None])
        leads = _find_leading(rivals, len(leaders))
        own = torch.cat([leads.new_ones(len(leaders)), leads])
        nearest = ious.where(rivals & own, -1).argmax(dim=1)
        leader[rows] = torch.where(leads, rows, columns[nearest])
        leaders = torch.cat([leaders, rows[leads]])
    group = torch.searchsorted(leaders, leader)
    key = group * num_copies + copies
    order = key.argsort(stable=True)
    members = order[_find_firsts(key[order])].sort().values
    return CopyGroups(leaders, members, group[members], copies[members], num_copies)


def _find_leading(rivals: Tensor, num_leaders: int) -> Tensor:
    """Detections of a chunk without a leading rival.

    Args:
        rivals: (R, L + R) bool, better detections: leaders, then those of the chunk.
        num_leaders: L.

    Returns:
        (R,) bool.
    """
    is_free, rivals = ~rivals[:, :num_leaders].any(dim=1), rivals[:, num_leaders:]
    leads, before = is_free, None
    # Each round settles at least the first detection that was not; a few rounds settle all.
    while before is None or not torch.equal(leads, before):
        before, leads = leads, is_free & ~(rivals & leads).any(dim=1)
    return leads


def _find_firsts(values: Tensor) -> Tensor:
    """Where a value of an ascending (M,) tensor occurs first: (M,) bool."""
    firsts = torch.ones_like(values, dtype=torch.bool)
    firsts[1:] = values[1:] != values[:-1]
    return firsts
