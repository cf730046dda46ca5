"""Deformable convolution, versions 1 and 2, on torchvision's operator.

Legend: N images, C channels, H W map size, k kernel side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """Convolution whose taps move by offsets that a small convolution predicts.

    A new one acts as a plain convolution (version 2: at half strength), as its offsets are zero.

    Args:
        in_channels, out_channels, kernel_size: as of `nn.Conv2d`.
        stride, padding, dilation, groups, bias: as of `nn.Conv2d`.
        modulated: version 2, where each tap has a predicted weight in [0, 1] too.
        norm: applied to the output.
        activation: applied after `norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * kernel_size**2,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        self.num_offsets = 2 * kernel_size**2
        self.norm = norm
        self.activation = activation
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        # Channels: (y, x) of each tap in turn, then (version 2) the taps' weights.
        predicted = self.offset(features)
        offsets, weights = predicted[:, : self.num_offsets], predicted[:, self.num_offsets :]
        output = deform_conv2d(
            features,
            offsets,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=weights.sigmoid() if weights.shape[1] else None,
        )
        output = output if self.norm is None else self.norm(output)
        return output if self.activation is None else self.activation(output)
