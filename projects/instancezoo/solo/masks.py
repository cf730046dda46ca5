"""How a grid cell says its mask (SOLO, section 3.2; Decoupled SOLO, section 3.4).

A mask representation is a value: the head makes it of its maps, training compares it with ground
truth, inference reads the masks of chosen cells from it.

Legend: N images, C channels, L levels, S grid side, K classes, R rows (one object, one cell),
P cells, H W map size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.layers.losses import dice_loss
from instancezoo.modeling.levels import level_offsets

from .targets import CellTargets, GridObjects, reduce_masks


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
    """Masks whose channels belong to the cells of one level; two functions read the channels.

    Args:
        num_grids: L grid sides.
        map_sizes: L pairs, height and width of each level's mask map, finest first.
    """

    def __init__(self, num_grids: list[int], map_sizes: list[tuple[int, int]]) -> None:
        self.num_grids = num_grids
        self.map_sizes = map_sizes

    @abstractmethod
    def read_level(self, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """Probabilities at the level's own size.

        Args:
            level: its index.
            image, cell: (P,) long, `cell` counts within the level.

        Returns:
            (P, H, W) fp32.
        """

    @abstractmethod
    def read_resized(self, level: int, image: int, cell: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities of one image's cells of a level at another size, (P, H, W) fp32."""

    def dice(self, objects: GridObjects, targets: CellTargets) -> Tensor:
        """See `CellMasks.dice`; rows are ordered by level."""
        strides = [objects.canvas[0] // height for height, _ in self.map_sizes]
        reduced = {stride: reduce_masks(objects, stride) for stride in set(strides)}
        dice = [targets.image.new_zeros(0, dtype=torch.float32)]
        for level, stride in enumerate(strides):
            rows = (targets.level == level).nonzero().squeeze(1)
            if len(rows):
                probs = self.read_level(level, targets.image[rows], targets.cell[rows])
                masks = reduced[stride][targets.instance[rows]]
                dice.append(dice_loss(probs.flatten(1), masks.flatten(1)))
        return torch.cat(dice)

    def probs(self, image: int, cells: Tensor) -> Tensor:
        """See `CellMasks.probs`; the finest level's map has the common size."""
        size = self.map_sizes[0]
        probs = [torch.zeros((0, *size), device=cells.device)]
        for level, (start, stop) in enumerate(pairwise(level_offsets(self.num_grids))):
            cell = cells[(cells >= start) & (cells < stop)] - start
            if len(cell):
                probs.append(self.read_resized(level, image, cell, size))
        return torch.cat(probs)


class SOLOMasks(LevelMasks):
    """One mask channel per cell.

    Args:
        features: L tensors (N, C, 2H, 2W), input of the output convolutions.
        convs: L 1x1 convolutions to S * S channels.
        num_grids: L grid sides.
    """

    def __init__(self, features: list[Tensor], convs: nn.ModuleList, num_grids: list[int]) -> None:
        super().__init__(num_grids, _list_sizes(features))
        self.features = features
        self.convs = convs

    def read_level(self, level: int, image: Tensor, cell: Tensor) -> Tensor:
        cells, owner = cell.unique(return_inverse=True)
        logits = predict_masks(self.features[level], self.convs[level], cells)
        return logits[image, owner].float().sigmoid()

    def read_resized(self, level: int, image: int, cell: Tensor, size: tuple[int, int]) -> Tensor:
        features = self.features[level][image : image + 1]
        logits = predict_masks(features, self.convs[level], cell)
        return resize_map(logits.float().sigmoid(), size)[0]


class DecoupledMasks(LevelMasks):
    """A mask is the product of one channel for its grid column and one for its grid row.

    Args:
        x_logits: L tensors (N, S, 2H, 2W), one channel per grid column.
        y_logits: L tensors (N, S, 2H, 2W), one channel per grid row.
    """

    def __init__(self, x_logits: list[Tensor], y_logits: list[Tensor]) -> None:
        super().__init__([logits.shape[1] for logits in x_logits], _list_sizes(x_logits))
        self.x_logits = x_logits
        self.y_logits = y_logits

    def read_level(self, level: int, image: Tensor, cell: Tensor) -> Tensor:
        side = self.num_grids[level]
        x_probs = self.x_logits[level][image, cell % side].float().sigmoid()
        y_probs = self.y_logits[level][image, cell // side].float().sigmoid()
        return x_probs * y_probs

    def read_resized(self, level: int, image: int, cell: Tensor, size: tuple[int, int]) -> Tensor:
        side = self.num_grids[level]
        columns, column = (cell % side).unique(return_inverse=True)
        rows, row = (cell // side).unique(return_inverse=True)
        x_logits, y_logits = self.x_logits[level][image], self.y_logits[level][image]
        # The two are resized before they are multiplied, as the official code does.
        x_probs = resize_map(x_logits[columns].float().sigmoid()[None], size)[0]
        y_probs = resize_map(y_logits[rows].float().sigmoid()[None], size)[0]
        return x_probs[column] * y_probs[row]


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


def resize_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, H, W), half-pixel centres, without antialiasing."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def _list_sizes(maps: list[Tensor]) -> list[tuple[int, int]]:
    return [(level.shape[2], level.shape[3]) for level in maps]
