"""Three classes of pixels: interior, border between near objects, background.

Legend: N images, M objects of an image, H W image size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.nearest_two import measure_nearest_two
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps, count_pixels

from .watershed import flood

INTERIOR, BORDER, BACKGROUND = 0, 1, 2
# Sides of the squares by which objects grow before they are parted, and lines afterwards.
_FAT, _NEAR = 9, 7
# Pixels of an object -> radius in which a second object makes a border; the last for larger ones.
_RADII = ((300, 1), (2000, 2), (torch.inf, 3))
# The same on the background, by the largest object of the image.
_GAP_RADII = ((4001, 3), (torch.inf, 6))
# Terms of the weights below this share of their largest are left out.
_NEGLIGIBLE = 1e-11


@dataclass(frozen=True)
class BoundaryTargets:
    """What the outputs are compared with; `valid` leaves out padding and crowds.

    Attributes:
        boundary: (N, H, W) long, INTERIOR, BORDER or BACKGROUND.
        ids: (N, H, W) long, 0 for none, 1 to M.
        classes: (N, H, W) long of the objects; meaningless where there is none.
        valid: (N, H, W) bool.
        weights: (N, H, W) of the cross-entropy; None for equal ones.
    """

    boundary: Tensor
    ids: Tensor
    classes: Tensor
    valid: Tensor
    weights: Tensor | None


def make_targets(
    objects: ObjectMaps, *, contacts: bool, weight: float | None, sigma: float
) -> BoundaryTargets:
    """Targets of a batch of objects painted at stride 1.

    Args:
        objects: N images.
        contacts: see `find_borders`.
        weight, sigma: of `weigh_pixels`; None for equal weights.
    """
    valid = objects.classes != IGNORED
    weights = None if weight is None else weigh_pixels(objects.ids, valid, weight, sigma)
    boundary = classify_pixels(objects.ids, contacts=contacts)
    return BoundaryTargets(boundary, objects.ids, objects.classes, valid, weights)


def classify_pixels(ids: Tensor, *, contacts: bool = True) -> Tensor:
    """Interior, border and background: (N, H, W) long of `ids` -> (N, H, W) long; see above."""
    borders = find_borders(ids, contacts=contacts)
    return torch.where(borders, BORDER, torch.where(ids > 0, INTERIOR, BACKGROUND))


def find_borders(ids: Tensor, *, contacts: bool = True) -> Tensor:
    """Pixels near the line between two objects whose surroundings hold both.

    Args:
        ids: (N, H, W) long, 0 for none.
        contacts: add pixels with another object beside them to the lines of the watershed, which
            draws none between objects that touch before it begins.

    Returns:
        (N, H, W) bool.
    """
    is_object = ids > 0
    fat = _dilate(is_object, _FAT)
    flat = np.zeros(ids.shape[1:], np.uint8)
    labels = [
        flood(flat, one, mask, draw_line=True)
        for one, mask in zip(ids.cpu().numpy(), fat.cpu().numpy(), strict=True)
    ]
    lines = fat & (torch.from_numpy(np.stack(labels)).to(ids.device) == 0)
    both = {radius: _has_two(ids, radius) for radius in (1, 2, 3, 6)}
    if contacts:
        lines |= is_object & both[1]
    sizes = count_pixels(ids)  # (N, 1 + most objects)
    sizes[:, 0] = 0  # of the background
    of_pixel = sizes.gather(1, ids.flatten(1)).view_as(ids)
    inside = _choose(of_pixel, _RADII, both)
    outside = _choose(sizes.amax(dim=1)[:, None, None].expand_as(ids), _GAP_RADII, both)
    return _dilate(lines, _NEAR) & inside.where(is_object, outside)


def weigh_pixels(
    ids: Tensor,
    valid: Tensor,
    weight: float,
    sigma: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight map of the U-Net paper (section 3, equation 2), balanced per image.

    Args:
        ids: (N, H, W) long, 0 for none.
        valid: (N, H, W) bool, pixels that count.
        weight: w_0 of the background between two objects that touch.
        sigma: pixels, by which it falls with the distances to the two nearest objects.
        dtype: of the result.

    Returns:
        (N, H, W), 0.5 / share of the object or background pixels, plus the second term.
    """
    is_object = ids > 0
    total = valid.flatten(1).sum(dim=1).clamp(min=1)
    share = (is_object & valid).flatten(1).sum(dim=1).to(dtype) / total  # (N,)
    shares = torch.where(is_object, share[:, None, None], 1 - share[:, None, None])
    balance = 0.5 / shares.clamp(min=torch.finfo(shares.dtype).tiny)
    reach = int(np.ceil(sigma * np.sqrt(-2 * np.log(_NEGLIGIBLE))))
    first, second = measure_nearest_two(ids, reach, dtype)
    between = weight * (-((first + second) ** 2) / (2 * sigma**2)).exp()
    return (balance + between.where(~is_object, 0)).where(valid, 0)


def _choose(sizes: Tensor, radii: tuple[tuple[float, int], ...], maps: dict[int, Tensor]) -> Tensor:
    """Of the map of each radius the pixels whose size is below its limit, (N, H, W)."""
    chosen = maps[radii[-1][1]]
    for limit, radius in reversed(radii[:-1]):
        chosen = maps[radius].where(sizes < limit, chosen)
    return chosen


def _has_two(ids: Tensor, radius: int) -> Tensor:
    """True where a square of this radius holds two objects: its ids are not all the same."""
    numbers = ids.float()  # exact below 2^24
    highest = _pool(numbers, radius)
    lowest = -_pool(-numbers.masked_fill(numbers == 0, torch.inf), radius)
    return (highest > 0) & (highest != lowest)


def _dilate(masks: Tensor, side: int) -> Tensor:
    """(N, H, W) bool -> the same, grown by a square of an odd side."""
    return _pool(masks.float(), side // 2) > 0


def _pool(values: Tensor, radius: int) -> Tensor:
    """Largest value of a square around each pixel, (N, H, W): rows first, then columns."""
    side = 2 * radius + 1
    rows = F.max_pool2d(values[:, None], (1, side), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(radius, 0))[:, 0]
