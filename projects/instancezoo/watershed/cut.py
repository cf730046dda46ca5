"""The cut: objects are what lies above an energy level, enlarged to their boundaries again.

Legend: K classes, S classes with the same setting, M components, h w map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.components import drop_small_components, label_components

_CUT_CONNECTIVITY, _LABEL_CONNECTIVITY = 4, 8
# Maps of long that a class needs at once.
_COPIES = 5


@dataclass(frozen=True)
class CutSettings:
    """How levels become objects; tuples have one value for each class.

    Attributes:
        levels: pixels of a higher level belong to the inside of objects.
        min_sizes: pixels of the smallest inside.
        paint_order: classes in the order in which they are painted, the later over the earlier.
        hole_area: holes of fewer pixels are filled.
        extra_growth: pixels by which objects grow beyond the level that was cut at.
    """

    levels: tuple[int, ...]
    min_sizes: tuple[int, ...]
    paint_order: tuple[int, ...]
    hole_area: int = 64
    extra_growth: int = 0


@torch.no_grad()
def cut_levels(levels: Tensor, classes: Tensor, settings: CutSettings) -> tuple[Tensor, Tensor]:
    """Cut one image.

    The cost does not depend on the number of objects: whole maps are worked on, those of several
    classes at once where `DEFAULT_BUDGET` allows it.

    Args:
        levels: (h, w) long, energy levels.
        classes: (h, w) long, K for the background.
        settings: of K classes.

    Returns:
        (h, w) long, 0 for no object, else 1 to M in the order of painting; (M,) long, the class of
        each. An object that others were painted over may have no pixel.
    """
    order = classes.new_tensor(settings.paint_order)  # (K,)
    present = classes.flatten().bincount(minlength=len(order) + 1) > 0
    order = order[present[order]]  # classes of the image
    painted, counts = torch.zeros_like(levels), [order[:0]]
    size = max(1, DEFAULT_BUDGET // (_COPIES * levels.element_size() * levels.numel()))
    for part in order.split(size):
        masks = _find_insides(levels, classes, part, settings)
        numbers = label_components(masks, connectivity=_LABEL_CONNECTIVITY)
        counts.append(numbers.flatten(1).amax(dim=1) if len(part) else part)  # (S,)
        ends = torch.cat(counts).cumsum(0)[-len(part) :]
        starts = ends - counts[-1]
        ranks = (numbers + starts[:, None, None]).where(masks, 0)
        painted = torch.maximum(painted, _grow(ranks, part, settings))
    return painted, order.repeat_interleave(torch.cat(counts))


def _find_insides(levels: Tensor, classes: Tensor, order: Tensor, settings: CutSettings) -> Tensor:
    """Masks (S, h, w) of what is above the level of the classes `order` (S,), without holes."""
    above = levels > levels.new_tensor(settings.levels)[order][:, None, None]
    masks = above & (classes == order[:, None, None])  # (S, h, w)
    masks = _drop_small(masks, order, settings.min_sizes)
    # Also those at the border of the map, and whatever class they have; but a small map in which
    # nothing is above the level is no hole.
    filled = ~drop_small_components(~masks, settings.hole_area, connectivity=_CUT_CONNECTIVITY)
    return filled & masks.flatten(1).any(dim=1)[:, None, None]


def _drop_small(masks: Tensor, order: Tensor, min_sizes: tuple[int, ...]) -> Tensor:
    """Masks (S, h, w) of the classes `order` (S,) without what is below their class's size."""
    sizes, kept = order.new_tensor(min_sizes)[order], masks.clone()
    for size in sorted(set(min_sizes)):
        rows = (sizes == size).nonzero().squeeze(1)
        kept[rows] = drop_small_components(masks[rows], size, connectivity=_CUT_CONNECTIVITY)
    return kept


def _grow(ranks: Tensor, order: Tensor, settings: CutSettings) -> Tensor:
    """Enlarge ranks (S, h, w) by squares, the higher rank over the lower: (h, w) long.

    What is painted last is the maximum of the ranks in the square around a pixel. So one maximum
    for each size of square is enough.
    """
    growths = [max(0, level + settings.extra_growth) for level in settings.levels]
    by_class = order.new_tensor(growths)[order]
    painted = torch.zeros_like(ranks[0]) if len(ranks) else ranks.new_zeros(ranks.shape[1:])
    for growth in sorted(set(growths)):
        rows = (by_class == growth).nonzero().squeeze(1)
        if len(rows):
            top = ranks[rows].amax(dim=0)[None, None].float()  # exact up to 2^24
            grown = F.max_pool2d(top, 2 * growth + 1, stride=1, padding=growth)
            painted = torch.maximum(painted, grown[0, 0].long())
    return painted
