"""The network: pyramid levels summed on one grid, then an embedding and a class branch.

Legend: N images, C channels, D embedding size, T thresholds, K classes, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from fvcore.nn import weight_init
from torch import Tensor, nn

from instancezoo.layers.semiconv import add_coordinates

_INITIAL_STD = 0.01


@dataclass(frozen=True)
class MetricMaps:
    """Outputs of `MetricHead` on one grid.

    Attributes:
        embeddings: (N, D, H, W), fp32.
        logits: (N, T, K + 1, H, W), background first; one classifier per threshold of the
            similarity, or one of the pixel's own class.
    """

    embeddings: Tensor
    logits: Tensor


class MetricHead(nn.Module):
    """Both branches on the sum of the levels (section 3 of the paper; FPN for its image pyramid).

    Args:
        in_features: names of the maps, in the order in which they come.
        trunk: brings the maps to one grid and sums them; its predictor is replaced.
        channels: of the trunk and of the hidden layers.
        num_convs: hidden 3x3 convolutions of each branch.
        embed_dim: D.
        num_classifiers: T.
        num_classes: K.
        coord_mode, coord_unit: see `add_coordinates`; "none" for a plain embedding.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        trunk: SemSegFPNHead,
        channels: int,
        num_convs: int,
        embed_dim: int,
        num_classifiers: int,
        num_classes: int,
        coord_mode: str = "none",
        coord_unit: float = 64.0,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.trunk = trunk
        self.trunk.predictor = nn.Identity()
        self.embedding = _build_branch(channels, num_convs, embed_dim)
        outputs = num_classifiers * (num_classes + 1)
        self.classifier = _build_branch(channels, num_convs, outputs)
        self.num_classifiers = num_classifiers
        self.coord_mode = coord_mode
        self.coord_unit = coord_unit

    def forward(self, features: list[Tensor]) -> MetricMaps:
        """Maps (N, C, H, W) -> both branches on the grid of the trunk's stride."""
        summed = self.trunk.layers(dict(zip(self.in_features, features, strict=True)))
        embeddings = add_coordinates(
            self.embedding(summed),
            stride=self.trunk.common_stride,
            unit=self.coord_unit,
            mode=self.coord_mode,
        )
        logits = self.classifier(summed).unflatten(1, (self.num_classifiers, -1))
        return MetricMaps(embeddings, logits)


def _build_branch(channels: int, num_convs: int, outputs: int) -> nn.Sequential:
    """Hidden 3x3 convolutions with ReLU, and a 1x1 convolution that starts near zero."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        hidden = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        weight_init.c2_msra_fill(hidden)
        layers += [hidden, nn.ReLU()]
    last = nn.Conv2d(channels, outputs, kernel_size=1)
    nn.init.normal_(last.weight, std=_INITIAL_STD)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, last)
