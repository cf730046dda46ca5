"""The network: a semantic and an affinity branch that all levels of the pyramid share.

Legend: N images, C channels, K classes, L levels, H W map size, r side of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from instancezoo.modeling.towers import build_prediction, build_tower


@dataclass(frozen=True)
class PyramidMaps:
    """Outputs of `SSAPHead`, the finest level first.

    Attributes:
        cls_logits: L maps (N, K + 1, H, W), the background last.
        affinity_logits: L maps (N, r*r, H, W); channels as in `layers/affinities.py`.
    """

    cls_logits: list[Tensor]
    affinity_logits: list[Tensor]


class SSAPHead(nn.Module):
    """Classes of the cells, and their affinities to the cells around them, on every level.

    Args:
        in_channels: C, of all levels.
        channels: of the convolutions.
        num_convs: 3x3 convolutions of each branch.
        num_classes: K.
        window: r.
        norm: of the convolutions.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_convs: int,
        num_classes: int,
        window: int,
        norm: str = "GN",
    ) -> None:
        super().__init__()
        width = channels if num_convs else in_channels
        self.semantic_tower = build_tower(in_channels, channels, num_convs, norm=norm)
        self.affinity_tower = build_tower(in_channels, channels, num_convs, norm=norm)
        self.cls_logits = build_prediction(width, num_classes + 1, kernel_size=1)
        self.affinity_logits = build_prediction(width, window**2, kernel_size=1)

    def forward(self, features: list[Tensor]) -> PyramidMaps:
        """L maps (N, C, H, W), the finest first."""
        return PyramidMaps(
            [self.cls_logits(self.semantic_tower(level)) for level in features],
            [self.affinity_logits(self.affinity_tower(level)) for level in features],
        )
