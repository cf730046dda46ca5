"""Connected components of boolean maps.

Legend: ... leading dimensions, H W map size, B maps.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.errors import check_choice

# Rows and columns from a pixel to neighbours; the opposite ones follow.
_HALF_NEIGHBOURS = {4: ((0, 1), (1, 0)), 8: ((0, 1), (1, 0), (1, 1), (1, -1))}


@torch.no_grad()
def label_components(masks: Tensor, *, connectivity: int = 8) -> Tensor:
    """Number the connected components of each map.

    OpenCV labels maps on the CPU, one after the other; maps on another device are labelled
    together, in a number of rounds that grows with the logarithm of the longest component.

    Args:
        masks: (..., H, W) bool.
        connectivity: 4, or 8 with diagonals.

    Returns:
        (..., H, W) long, 0 outside the components; those of a map are numbered from 1 on, in
        row-major order of their first pixels.

    Raises:
        ConfigError: another connectivity.
    """
    check_choice("connectivity", connectivity, _HALF_NEIGHBOURS)
    if masks.numel() == 0:
        return torch.zeros_like(masks, dtype=torch.long)
    maps = masks.reshape(-1, *masks.shape[-2:])
    if maps.device.type == "cpu":
        labels = _label_by_opencv(maps, connectivity)
    else:
        labels = _label_by_merging(maps, connectivity)
    return labels.view(masks.shape)


@torch.no_grad()
def drop_small_components(masks: Tensor, min_size: int, *, connectivity: int = 8) -> Tensor:
    """Remove components of fewer pixels. Holes are filled by the complement of the complement.

    Args:
        masks: (..., H, W) bool.
        min_size: pixels of the smallest component that stays.
        connectivity: 4, or 8 with diagonals.

    Returns:
        (..., H, W) bool.
    """
    if masks.numel() == 0:
        return masks
    labels = label_components(masks, connectivity=connectivity).view(-1, *masks.shape[-2:])
    most = labels.flatten(1).amax(dim=1)  # (B,)
    starts = (most + 1).cumsum(0) - (most + 1)
    owners = (labels + starts[:, None, None]).flatten()
    sizes = owners.bincount(minlength=int((most + 1).sum()))
    kept = (sizes >= min_size)[owners]
    return masks & kept.view(masks.shape)


def _label_by_opencv(maps: Tensor, connectivity: int) -> Tensor:
    """(B, H, W) bool on the CPU -> long."""
    labels = [
        # This algorithm numbers components by their first pixels, the default one does not.
        cv2.connectedComponentsWithAlgorithm(image, connectivity, cv2.CV_32S, cv2.CCL_SAUF)[1]
        for image in maps.to(torch.uint8).numpy()
    ]
    return torch.from_numpy(np.stack(labels)).long()


def _label_by_merging(maps: Tensor, connectivity: int) -> Tensor:
    """(B, H, W) bool -> long, on any device: pixels take the least number around them."""
    count, height, width = maps.shape
    outside = maps.numel()
    numbers = torch.arange(outside, device=maps.device).view_as(maps)
    roots = torch.arange(outside + 1, device=maps.device)
    labels = numbers.where(maps, outside)
    while True:
        least = labels
        for dy, dx in _HALF_NEIGHBOURS[connectivity]:
            for y, x in ((dy, dx), (-dy, -dx)):
                padded = F.pad(labels, (1, 1, 1, 1), value=outside)
                moved = padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
                least = least.minimum(moved)
        least = least.where(maps, outside)
        if torch.equal(least, labels):
            break
        # A component that touches another takes its number as a whole, then chains are followed.
        roots.scatter_reduce_(0, labels.flatten(), least.flatten(), "amin")
        while not torch.equal(further := roots[roots], roots):
            roots = further
        labels = roots[labels.flatten()].view_as(maps)
    is_first = (labels == numbers) & maps
    ranks = is_first.flatten(1).cumsum(dim=1).flatten()  # from 1 on in each map
    found = ranks[labels.flatten().clamp(max=outside - 1)].view_as(maps)
    return found.where(maps, 0).view(count, height, width)
