"""Ground truth painted on the grid of a head: which object and which class each cell has.

Legend: N images, K classes, M objects of an image, H W image size, h w size of the grid, P pairs of
object and cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

# Class of the cells that no loss counts: padding and crowds.
IGNORED = -1


@dataclass(frozen=True)
class ObjectMaps:
    """Disjoint objects of a batch.

    Attributes:
        ids: (N, h, w) long, 0 for none, i + 1 for object i of the image.
        classes: (N, h, w) long; the number of classes for the background, or `IGNORED`.
        counts: N numbers of objects, those without a cell included.
    """

    ids: Tensor
    classes: Tensor
    counts: tuple[int, ...]

    def list_cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All cells of all objects.

        Returns:
            Object, counted over the batch, image, row and column (P,) long each.
        """
        image, y, x = self.ids.nonzero(as_tuple=True)
        firsts = torch.tensor(self.counts, device=image.device)
        firsts = firsts.cumsum(0) - firsts  # (N,)
        return firsts[image] + self.ids[image, y, x] - 1, image, y, x


def paint_objects(
    ground_truth: Sequence[Instances],
    padded_size: Sequence[int],
    stride: int,
    num_classes: int,
    *,
    offset: int | None = None,
) -> ObjectMaps:
    """Paint objects over each other, smaller ones last, so that all stay visible.

    Args:
        ground_truth: N Instances with `gt_classes`, `gt_masks` (BitMasks) and, for crowds,
            `gt_is_crowd`; crowds come after the objects.
        padded_size: height and width of the batch in pixels.
        stride: of the grid in pixels.
        num_classes: class of the background.
        offset: row and column within a cell of the pixel that the cell is painted by; None for the
            centre's.
    """
    first = stride // 2 if offset is None else offset
    height, width = (-(-int(side) // stride) for side in padded_size)
    all_ids, all_classes, counts = [], [], []
    for objects in ground_truth:
        masks = objects.gt_masks.tensor.bool()
        cells = masks[:, first::stride, first::stride]  # (M, up to h, up to w)
        is_crowd = torch.zeros_like(objects.gt_classes, dtype=torch.bool)
        if objects.has("gt_is_crowd"):
            is_crowd = objects.gt_is_crowd
        areas = masks[~is_crowd].flatten(1).sum(dim=1)
        painted = _paint(cells[~is_crowd], areas)
        table = torch.cat([objects.gt_classes.new_tensor([num_classes]), objects.gt_classes])
        colours = table[painted]
        in_crowd = cells[is_crowd].any(dim=0) & (painted == 0)
        ids = painted.new_zeros(height, width)
        classes = painted.new_full((height, width), IGNORED)
        rows, columns = painted.shape
        ids[:rows, :columns] = painted
        classes[:rows, :columns] = colours.masked_fill(in_crowd, IGNORED)
        all_ids.append(ids)
        all_classes.append(classes)
        counts.append(len(areas))
    return ObjectMaps(torch.stack(all_ids), torch.stack(all_classes), tuple(counts))


def count_pixels(ids: Tensor) -> Tensor:
    """Pixels of each object of each image: (N, H, W) long ids -> (N, 1 + most ids) long."""
    count = int(ids.amax()) + 1 if ids.numel() else 1
    starts = torch.arange(len(ids), device=ids.device)[:, None, None] * count
    counts = (ids + starts).flatten().bincount(minlength=len(ids) * count)
    return counts.view(len(ids), count)


def semantic_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the cells' classes, the mean over the cells that count; 0 without any.

    Args:
        logits: (N, K + 1, h, w), the background last.
        classes: (N, h, w) long, as in `ObjectMaps`.

    Returns:
        () fp32
    """
    sums = F.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="sum")
    return sums / (classes != IGNORED).sum().clamp(min=1)


def _paint(cells: Tensor, areas: Tensor) -> Tensor:
    """(M, h, w) bool in descending `areas` -> (h, w) long, 0 for none or number from 1 on."""
    order = areas.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
    owner, y, x = cells.nonzero(as_tuple=True)
    top = torch.zeros(cells.shape[1] * cells.shape[2], dtype=torch.long, device=cells.device)
    top.scatter_reduce_(0, y * cells.shape[2] + x, ranks[owner] + 1, "amax")
    numbers = torch.cat([order.new_zeros(1), order + 1])
    return numbers[top].view(cells.shape[1:])
