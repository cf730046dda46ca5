"""From probabilities to objects: seeds, watershed, parts (the recipe of DSB 2018's winners).

Legend: H W map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instancezoo.layers.components import label_components

from .watershed import LEVELS, Labels, drop_small, flood, split_parts

Levels = NDArray[np.uint8]
# Side of the square by which whole objects may be larger than what the interior gave.
_GROWTH = 7


@dataclass(frozen=True)
class GroupingSettings:
    """How pixels are grouped; keys of MODEL.BOUNDARY of the same meaning."""

    seed_thresh: float = 0.5
    mask_thresh: int = 70
    object_thresh: int = 90
    min_size: int = 10
    draw_line: bool = True


def quantise(probs: Tensor) -> Tensor:
    """Probabilities in [0, 1] -> whole numbers in [0, 255], rounded down: uint8."""
    return (probs * LEVELS).clamp(0, LEVELS).to(torch.uint8)


def find_seeds(interior: Tensor, border: Tensor, thresh: float, min_size: int) -> Labels:
    """8-connected components where interior * (1 - border) is above the threshold.

    Args:
        interior, border: (H, W) uint8.
        thresh: in [0, 1].
        min_size: pixels of the smallest seed.

    Returns:
        (H, W) int64, 0 for none.
    """
    product = interior.int() * (LEVELS - border.int())
    labels = label_components(product > thresh * LEVELS**2)
    return drop_small(labels.cpu().numpy(), min_size)


def grow_seeds(seeds: Labels, interior: Levels, settings: GroupingSettings) -> Labels:
    """Let seeds grow over the interior, the most probable pixels first; drop small objects."""
    mask = interior > settings.mask_thresh
    labels = flood(LEVELS - interior, seeds, mask, draw_line=settings.draw_line)
    return drop_small(labels, settings.min_size)


def grow_objects(labels: Labels, objects: Tensor, thresh: int) -> Labels:
    """Let labels grow by a few pixels over what is probably an object, without lines.

    Args:
        labels: (H, W), 0 for none.
        objects: (H, W) uint8, probability of whole objects.
        thresh: level that objects exceed.

    Returns:
        (H, W) int64.
    """
    taken = torch.from_numpy(labels > 0)[None].float()
    near = torch.max_pool2d(taken, _GROWTH, stride=1, padding=_GROWTH // 2)[0].numpy() > 0
    levels = objects.cpu().numpy()
    return flood(LEVELS - levels, labels, near & (levels > thresh), draw_line=False)


def group_pixels(
    interior: Tensor, border: Tensor, objects: Tensor | None, settings: GroupingSettings
) -> Labels:
    """Group the pixels of an image.

    Args:
        interior, border: (H, W) uint8, see `quantise`.
        objects: the same of whole objects; None if they are not predicted.
        settings: thresholds.

    Returns:
        (H, W) int64, 0 for none; each label is one 8-connected part.
    """
    seeds = find_seeds(interior, border, settings.seed_thresh, settings.min_size)
    labels = grow_seeds(seeds, interior.cpu().numpy(), settings)
    if objects is not None:
        labels = drop_small(
            grow_objects(labels, objects, settings.object_thresh), settings.min_size
        )
    return split_parts(labels)
