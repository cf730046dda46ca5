"""The networks in their order: semantics, directions, energy levels.

Legend: N images, C channels, K classes, B energy levels, H W size of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.structures import ImageList
from torch import Tensor, nn

from .networks import DirectionNet, EnergyNet
from .semantics import ClassChannels, SemanticBranch, SemanticFiles, Semantics


@dataclass(frozen=True)
class WatershedMaps:
    """What is known of a batch; training computes directions and levels with its losses.

    Attributes:
        images: (N, C, H, W), normalised.
        semantics: where the classes come from.
        classes: (N, H, W) long, K for background and padding.
        directions: (N, 2, H, W).
        level_logits: (N, B, H, W).
    """

    images: Tensor
    semantics: Semantics
    classes: Tensor | None = None
    directions: Tensor | None = None
    level_logits: Tensor | None = None


class WatershedHead(nn.Module):
    """Semantics, direction network and energy network.

    Args:
        semantics: where the classes come from.
        class_channels: joins image and classes.
        direction_net, energy_net: the two networks.
    """

    def __init__(
        self,
        *,
        semantics: SemanticBranch | SemanticFiles,
        class_channels: ClassChannels,
        direction_net: DirectionNet,
        energy_net: EnergyNet,
    ) -> None:
        super().__init__()
        self.semantics = semantics
        self.class_channels = class_channels
        self.direction_net = direction_net
        self.energy_net = energy_net

    def forward(
        self, features: list[Tensor], images: ImageList, records: Sequence[dict[str, Any]]
    ) -> WatershedMaps:
        """All maps in inference; semantics alone in training, whose losses choose the rest.

        Args:
            features: maps of the backbone.
            images: the padded batch.
            records: N dicts in Detectron2's format.
        """
        semantics = self.semantics(features, images, records)
        if self.training:
            return WatershedMaps(images.tensor, semantics)
        classes = semantics.find_classes()
        directions = self.find_directions(images.tensor, classes)
        levels = self.energy_net(directions, self.find_things(classes))
        return WatershedMaps(images.tensor, semantics, classes, directions, levels)

    def find_things(self, classes: Tensor) -> Tensor:
        """Classes (N, H, W) long -> bool, False for the background."""
        return classes < self.class_channels.num_classes

    def find_directions(self, images: Tensor, classes: Tensor) -> Tensor:
        """Images (N, C, H, W) and classes (N, H, W) long -> directions (N, 2, H, W)."""
        inputs = self.class_channels(images, classes)
        directions: Tensor = self.direction_net(inputs, self.find_things(classes))
        return directions
