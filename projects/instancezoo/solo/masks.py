"""Mask representations of grid cells (SOLO, section 3.2; Decoupled SOLO, section 3.4).

A representation is a value: the head makes it from its maps, training compares it with ground
truth, inference reads the masks of chosen cells from it.

Legend: N images, C channels, L levels, S grid side, K classes, R rows (one object, one cell),
P cells, H W size of a mask map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.levels import level_offsets, list_map_sizes

from .targets import CellTargets, GridObjects, reduce_masks

# One pair per factor of the masks: logits (images, C, H, W), and each cell's channel, (P,) long
Channels = list[tuple[Tensor, Tensor]]


class CellMasks(Protocol):
    """Masks of all grid cells of a batch."""

    def dice(self, objects: GridObjects, targets: CellTargets) -> Tensor:
        """Dice loss of every row of `targets`, (R,) fp32, in any fixed order."""

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """Mask probabilities of one image's cells on the common stride-4 map.

        Args:
            image: index in the batch.
            cells: (P,) long, ascending, indices over all levels.

        Returns:
            (P, H, W) fp32 in [0, 1].
        """


class GridOutputs(NamedTuple):
    """What a head of the family returns.

    Attributes:
        cls_logits: L tensors (N, K, S, S).
        masks: of all cells.
    """

    cls_logits: list[Tensor]
    masks: CellMasks


class LevelMasks(ABC):
    """Masks that are one channel of their level's map, or the product of several.

    Args:
        num_grids: L grid sides.
        map_sizes: L pairs, height and width of each level's mask map, finest first.
    """

    def __init__(self, num_grids: list[int], map_sizes: list[tuple[int, int]]) -> None:
        self.num_grids = num_grids
        self.map_sizes = map_sizes

    @abstractmethod
    def find_channels(self, level: int, images: slice, cell: Tensor) -> Channels:
        """Channels whose product is the mask, for cells (P,) of a level, indices within it."""

    def dice(self, objects: GridObjects, targets: CellTargets) -> Tensor:
        """See `CellMasks.dice`; rows are ordered by level."""
        strides = [objects.canvas[0] // height for height, _ in self.map_sizes]
        reduced_masks = {stride: reduce_masks(objects, stride) for stride in set(strides)}
        dice = [targets.image.new_zeros(0, dtype=torch.float32)]
        for level, (start, _) in enumerate(pairwise(level_offsets(self.num_grids))):
            rows = (targets.level == level).nonzero().squeeze(1)
            if len(rows):
                image, cell = targets.image[rows], targets.cell[rows] - start
                channels = self.find_channels(level, slice(None), cell)
                factors = [logits[image, index].float().sigmoid() for logits, index in channels]
                masks = reduced_masks[strides[level]][targets.instance[rows]]
                dice.append(dice_loss(reduce(torch.mul, factors).flatten(1), masks.flatten(1)))
        return torch.cat(dice)

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """See `CellMasks.probs`; the finest level's map has the common size."""
        probs = [torch.zeros((0, *self.map_sizes[0]), device=cells.device)]
        for level, (start, stop) in enumerate(pairwise(level_offsets(self.num_grids))):
            cell = cells[(cells >= start) & (cells < stop)] - start
            if len(cell):
                channels = self.find_channels(level, slice(image, image + 1), cell)
                # parity: factors are resized before they are multiplied.
                probs.append(reduce(torch.mul, [self._resize(*factor) for factor in channels]))
        return torch.cat(probs)

    def _resize(self, logits: Tensor, channel: Tensor) -> Tensor:
        """Probabilities of one image's channels at the common size, each resized once."""
        used, rows = channel.unique(return_inverse=True)
        # Masks are large: they are gathered only where the order or the number changes.
        wanted = logits if len(used) == logits.shape[1] else logits[:, used]
        probs = resize_map(wanted.float().sigmoid(), self.map_sizes[0])[0]
        return probs if torch.equal(used, channel) else probs[rows]


class SOLOMasks(LevelMasks):
    """One mask channel per cell.

    Args:
        features: L tensors (N, C, H, W), input of the output convolutions.
        convs: L 1x1 convolutions to S * S channels.
        num_grids: L grid sides.
    """

    def __init__(self, features: list[Tensor], convs: nn.ModuleList, num_grids: list[int]) -> None:
        super().__init__(num_grids, list_map_sizes(features))
        self.features = features
        self.convs = convs

    def find_channels(self, level: int, images: slice, cell: Tensor) -> Channels:
        cells, index = cell.unique(return_inverse=True)
        return [(predict_masks(self.features[level][images], self.convs[level], cells), index)]


class DecoupledMasks(LevelMasks):
    """A mask is the product of one channel for its grid column and one for its grid row.

    Args:
        x_logits: L tensors (N, S, H, W), one channel per grid column.
        y_logits: L tensors (N, S, H, W), one channel per grid row.
    """

    def __init__(self, x_logits: list[Tensor], y_logits: list[Tensor]) -> None:
        super().__init__([logits.shape[1] for logits in x_logits], list_map_sizes(x_logits))
        self.x_logits = x_logits
        self.y_logits = y_logits

    def find_channels(self, level: int, images: slice, cell: Tensor) -> Channels:
        x_logits, y_logits = self.x_logits[level][images], self.y_logits[level][images]
        side = self.num_grids[level]
        return [(x_logits, cell % side), (y_logits, cell // side)]


def predict_masks(features: Tensor, conv: nn.Module, cells: Tensor) -> Tensor:
    """Mask logits of chosen cells of a level: only their output channels are computed.

    Args:
        features: (N, C, H, W) of the level.
        conv: its output convolution.
        cells: (P,) long, indices within the level.

    Returns:
        (N, P, H, W).
    """
    return F.conv2d(features, conv.weight[cells], conv.bias[cells])  # type: ignore[index]


def resize_map(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, H, W), half-pixel centres, without antialiasing."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
