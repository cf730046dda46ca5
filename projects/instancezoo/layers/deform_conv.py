"""Deformable convolution, versions 1 and 2, on torchvision's operator.

Legend: N images, C channels, H W map size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """Convolution whose taps move by offsets that another convolution predicts.

    Offsets are 0 at first: it acts as a plain convolution (version 2: with half the weight).

    Args:
        in_channels, out_channels, kernel_size: as of `nn.Conv2d`.
        stride, padding, dilation, groups, bias: as of `nn.Conv2d`.
        modulated: if True, version 2, where each tap also has a predicted weight in [0, 1].
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
        self.geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.num_offsets = 2 * kernel_size**2
        num_predicted = (3 if modulated else 2) * kernel_size**2
        self.offset = nn.Conv2d(in_channels, num_predicted, kernel_size, **self.geometry)
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
        mask = weights.sigmoid() if weights.shape[1] else None
        output = deform_in_fp32(features, offsets, self.weight, self.bias, mask, **self.geometry)
        output = output if self.norm is None else self.norm(output)
        return output if self.activation is None else self.activation(output)


def deform_in_fp32(
    features: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    **geometry: Any,
) -> Tensor:
    """torchvision's `deform_conv2d`, computed in fp32 for inputs of half precision.

    The operator adds offsets to positions in the type of its input: bfloat16 has no fractions of a
    pixel from 128 on. Not every device has the operator for bfloat16, either. An offset of NaN
    makes the operator read outside of its input; here its place in the output becomes NaN.

    Args:
        features, offsets, weight, bias, mask: as of `deform_conv2d`; any mixture of float types.
        geometry: `stride`, `padding` and `dilation`.

    Returns:
        (N, C', H, W) of the type of `offsets`, which is that of a plain convolution.
    """
    kind = torch.promote_types(offsets.dtype, torch.float32)
    # 0, or NaN where an offset is not finite: (N, 1, H, W)
    damage = (offsets.detach().to(kind) * 0).sum(dim=1, keepdim=True)
    with torch.autocast(features.device.type, enabled=False):
        output = deform_conv2d(
            features.to(kind),
            offsets.to(kind).nan_to_num(),
            weight.to(kind),
            None if bias is None else bias.to(kind),
            mask=None if mask is None else mask.to(kind),
            **geometry,
        )
    return (output + damage).to(offsets.dtype)
