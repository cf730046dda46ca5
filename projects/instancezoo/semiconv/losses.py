"""Losses of the segmentor that go over cells of the grid.

Legend: N images, D embedding size, M instances of all images, P cells, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instancezoo.layers.owners import average_by_owner
from instancezoo.layers.score_windows import locate_cells
from instancezoo.layers.semiconv import kernel_loss, measure_exponents
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps


@dataclass(frozen=True)
class KernelCells:
    """Cells around each instance, and one of the instance's own as seed.

    Attributes:
        owners: (P,) long, instance, from 0 on; instances without a cell are left out.
        cells: (P,) long, numbers of the cells in (N, h, w).
        inside: (P,) bool, the cell is the instance's.
        seeds: (M,) long, numbers of the seeds' cells.
    """

    owners: Tensor
    cells: Tensor
    inside: Tensor
    seeds: Tensor


def sample_kernel_cells(targets: ObjectMaps) -> KernelCells:
    """Choose a random seed of each instance and the cells of its box, half as large again.

    Args:
        targets: painted objects. Ignored cells are left out.
    """
    height, width = targets.ids.shape[1:]
    owner, image, y, x = targets.list_cells()
    present, owner = owner.unique(return_inverse=True)
    counts = owner.bincount(minlength=len(present))  # (M,)
    order = owner.argsort(stable=True)
    numbers = ((image * height + y) * width + x)[order]
    chosen = (torch.rand(len(counts), device=counts.device) * counts).long()
    starts = counts.cumsum(0) - counts
    seeds = numbers[starts + torch.minimum(chosen, counts - 1)]
    first, stop = _find_extent(torch.stack([y, x], dim=1), owner, len(present))
    margin = (stop - first + 1) // 2
    limits = first.new_tensor([height, width])
    windows = torch.cat([(first - margin).clamp(min=0), torch.minimum(stop + margin, limits)], 1)
    owners, y, x = locate_cells(windows)
    images = seeds.div(height * width, rounding_mode="floor")  # (M,)
    cells = (images[owners] * height + y) * width + x
    counted = targets.classes.flatten()[cells] != IGNORED
    owners, cells = owners[counted], cells[counted]
    ids = targets.ids.flatten()
    return KernelCells(owners, cells, ids[cells] == ids[seeds][owners], seeds)


def similarity_loss(
    embeddings: Tensor, log_sigma: Tensor, chosen: KernelCells, kernel: str
) -> Tensor:
    """Cross-entropy between each instance's mask and the similarity to its seed.

    Args:
        embeddings: (N, D, h, w).
        log_sigma: ().
        chosen: cells and seeds.
        kernel: see `measure_exponents`.

    Returns:
        (), the mean over instances of the mean over their cells.
    """
    by_cell = embeddings.permute(0, 2, 3, 1).flatten(0, 2)  # (N*h*w, D)
    differences = by_cell[chosen.cells] - by_cell[chosen.seeds][chosen.owners]
    exponents = measure_exponents(differences, log_sigma, dim=1, kernel=kernel)
    losses = kernel_loss(exponents, chosen.inside)  # (P,)
    num_instances = len(chosen.seeds)
    return average_by_owner(losses, chosen.owners, num_instances).sum() / max(1, num_instances)


def _find_extent(points: Tensor, owners: Tensor, num_owners: int) -> tuple[Tensor, Tensor]:
    """First point and the one after the last (M, 2) of each owner's points (P, 2)."""
    places = owners[:, None].expand_as(points)
    first = points.new_zeros(num_owners, 2)
    first = first.scatter_reduce(0, places, points, "amin", include_self=False)
    last = points.new_zeros(num_owners, 2)
    last = last.scatter_reduce(0, places, points, "amax", include_self=False)
    return first, last + 1
