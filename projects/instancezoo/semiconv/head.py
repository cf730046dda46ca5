"""The networks: embedding of a pyramid's maps, and the two branches of the segmentor.

Legend: N images, C channels, D embedding size, K classes, H W map size, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from fvcore.nn import weight_init
from torch import Tensor, nn

from instancezoo.layers.semiconv import add_coordinates, scale_gradient

_INITIAL_STD = 0.01


class Coordinates(nn.Module):
    """The semi-convolutional operator with its settings, see `add_coordinates`.

    Args:
        mode, unit: as there.
    """

    def __init__(self, *, mode: str, unit: float) -> None:
        super().__init__()
        self.mode = mode
        self.unit = unit

    def forward(self, features: Tensor, stride: int) -> Tensor:
        """(N, D, H, W) of a map of this stride -> the same shape, fp32."""
        return add_coordinates(features, stride=stride, unit=self.unit, mode=self.mode)

    def find_cells(self, points: Tensor, stride: int) -> Tensor:
        """Geometric embeddings, of any shape, in cells of a map of this stride."""
        return points * (self.unit / stride) - 0.5 if self.mode == "image" else points


class SemiConvHead(nn.Module):
    """The shallow network that all levels of a pyramid share (section 4.2).

    Args:
        in_channels: C.
        hidden_channels: of the hidden layer.
        embed_dim: D.
        strides: of the L levels in pixels.
        coordinates: adds the positions.
        grad_scale: factor of the gradient that reaches the levels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_channels: int,
        embed_dim: int,
        strides: Sequence[int],
        coordinates: Coordinates,
        grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(in_channels, hidden_channels, kernel_size=1)
        weight_init.c2_msra_fill(self.hidden)
        self.embed = nn.Conv2d(hidden_channels, embed_dim, kernel_size=3, padding=1)
        start_small(self.embed)
        self.strides = list(strides)
        self.coordinates = coordinates
        self.grad_scale = grad_scale

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """L maps (N, C, H, W) -> L embeddings Psi (N, D, H, W), fp32."""
        if self.training:
            features = [scale_gradient(feature, self.grad_scale) for feature in features]
        phi = [self.embed(self.hidden(feature).relu()) for feature in features]
        return [self.coordinates(*level) for level in zip(phi, self.strides, strict=True)]


@dataclass(frozen=True)
class PixelMaps:
    """Outputs of `SemiConvPixelHead` on one grid.

    Attributes:
        cls_logits: (N, K + 1, H, W), the background last.
        embeddings: (N, D, H, W), Psi; fp32.
        log_sigma: (), logarithm of the kernel's bandwidth.
    """

    cls_logits: Tensor
    embeddings: Tensor
    log_sigma: Tensor


class SemiConvPixelHead(nn.Module):
    """Semantic branch and embedding branch of the segmentor, both like Panoptic FPN's.

    Args:
        in_features: names of the maps, in the order in which they come.
        semantic: gives K + 1 channels.
        embedding: gives D channels on the same grid.
        coordinates: adds the positions.
        sigma: bandwidth that the kernel starts with.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        semantic: SemSegFPNHead,
        embedding: SemSegFPNHead,
        coordinates: Coordinates,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.semantic = semantic
        self.embedding = embedding
        start_small(self.embedding.predictor)
        start_small(self.semantic.predictor)  # Detectron2's rule gives few classes large logits
        self.coordinates = coordinates
        self.log_sigma = make_log_sigma(sigma)

    def forward(self, features: list[Tensor]) -> PixelMaps:
        """Maps (N, C, H, W) -> both branches on the grid of their common stride."""
        by_name = dict(zip(self.in_features, features, strict=True))
        phi = self.embedding.layers(by_name)
        return PixelMaps(
            self.semantic.layers(by_name),
            self.coordinates(phi, self.embedding.common_stride),
            self.log_sigma,
        )


def start_small(conv: nn.Module) -> None:
    """Initialise a last convolution N(0, 0.01): Psi starts as the coordinates, classes as equal."""
    nn.init.normal_(conv.weight, std=_INITIAL_STD)  # type: ignore[arg-type]
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def make_log_sigma(sigma: float) -> nn.Parameter:
    """The learnable bandwidth of a kernel; positive whatever it learns."""
    return nn.Parameter(torch.tensor(log(sigma)))
