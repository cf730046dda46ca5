"""Sampled points and what their masks are worth.

Legend: N images, M objects, S points, T thresholds, K classes, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.modeling.object_maps import ObjectMaps


@dataclass(frozen=True)
class Points:
    """Cells of a batch.

    Attributes:
        images: (S,) long.
        cells: (S,) long, in row-major order of the image's grid.
        owners: (S,) long, the object, counted over the batch; the backgrounds of the images come
            after the objects.
        sizes: (S,) long, cells of this object.
    """

    images: Tensor
    cells: Tensor
    owners: Tensor
    sizes: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Points]) -> Points:
        """Join points of one batch."""
        names = ("images", "cells", "owners", "sizes")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def sample_object_points(targets: ObjectMaps, num_samples: int) -> Points:
    """Random cells of each object, with replacement; objects without a cell have none.

    Args:
        targets: painted objects.
        num_samples: of each object.
    """
    owner, image, y, x = targets.list_cells()
    order = owner.argsort(stable=True)
    present, counts = owner.unique(return_counts=True)  # (M,) each
    starts = counts.cumsum(0) - counts
    chosen = (torch.rand(len(counts), num_samples, device=owner.device) * counts[:, None]).long()
    places = order[starts[:, None] + torch.minimum(chosen, counts[:, None] - 1)].flatten()
    cells = y * targets.ids.shape[2] + x
    sizes = counts[:, None].expand_as(chosen).flatten()
    owners = present[:, None].expand_as(chosen).flatten()
    return Points(image[places], cells[places], owners, sizes)


def sample_background(targets: ObjectMaps, background: int, numbers: Tensor) -> Points:
    """Random cells of the background, with replacement; none where an image has no background.

    Args:
        targets: painted objects.
        background: the class of the cells.
        numbers: (N,) long, of the cells of each image.
    """
    image, cell = (targets.classes.flatten(1) == background).nonzero(as_tuple=True)
    counts = image.bincount(minlength=len(numbers))  # (N,)
    starts = counts.cumsum(0) - counts
    images = torch.arange(len(numbers), device=numbers.device).repeat_interleave(numbers)
    images = images[counts[images] > 0]
    chosen = (torch.rand(len(images), device=images.device) * counts[images]).long()
    cells = cell[starts[images] + torch.minimum(chosen, counts[images] - 1)]
    return Points(images, cells, sum(targets.counts) + images, counts[images])


def list_object_classes(ids: Tensor, classes: Tensor) -> Tensor:
    """Classes (M,) long of the objects in maps (h, w) long of their ids and classes."""
    inside = ids > 0
    found = classes.new_zeros(int(ids.max()) if ids.numel() else 0)
    return found.scatter_(0, ids[inside] - 1, classes[inside])


def label_points(ious: Tensor, objects: Tensor, classes: Tensor, iou_thresh: float) -> Tensor:
    """The class that each point is a good seed of.

    Args:
        ious: (T, S), of the point's mask with the best object.
        objects: (T, S) long, this object.
        classes: (M,) long, in [0, K).
        iou_thresh: a good seed's IoU is larger.

    Returns:
        (T, S) long, 0 for none, else one plus the class.
    """
    padded = torch.cat([classes + 1, classes.new_zeros(1)])  # there may be no object
    return torch.where(ious > iou_thresh, padded[objects], 0)
