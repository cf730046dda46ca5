"""The two networks: directions away from the boundary, and energy levels from the directions.

Legend: N images, C channels, H W image size, B energy levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

# Both networks halve the image up to four times; other sizes would be padded unevenly.
SIZE_DIVISIBILITY = 16
_TRUNK = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_BRANCH_WIDTH = 256  # of what a branch ends in
_FUSE_WIDTH = 512
_ENERGY_WIDTHS = (64, 128)  # of the first convolution, and of all others
_MIN_WIDTH = 4
_LARGE_KERNEL = 5
_SQUARED_FLOOR = 1e-20  # of the length of a direction


class DirectionNet(nn.Module):
    """Unit vectors that point away from the boundary of their object.

    VGG-16 whose last three stages are joined at a quarter of the image's size.

    Args:
        in_channels: C, of the image and of the classes.
        width: factor of all channels, 1 for those of the paper.
        norm: after every convolution but the last one; "" for none, as in the paper.
        branch_stds: standard deviations of the last convolutions of the three branches, the
            coarsest first; empty for He's rule.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: float = 1.0,
        norm: str = "",
        branch_stds: Sequence[float] = (),
    ) -> None:
        super().__init__()
        before = in_channels
        self._stages: list[list[str]] = []
        for stage, channels in enumerate(_TRUNK, start=1):
            names = []
            for number, wide in enumerate(channels, start=1):
                names.append(f"conv{stage}_{number}")
                after = _scale(wide, width)
                self.add_module(names[-1], _build_conv(before, after, kernel_size=3, norm=norm))
                before = after
            self._stages.append(names)
        end = _scale(_BRANCH_WIDTH, width)
        stds: list[float | None] = [*branch_stds] or [None] * 3
        for stage, std in zip((5, 4, 3), stds, strict=True):
            wide = _scale(_TRUNK[stage - 1][-1], width)
            large = _build_conv(wide, wide, kernel_size=_LARGE_KERNEL, norm=norm)
            self.add_module(f"fcn{stage}_1", large)
            self.add_module(f"fcn{stage}_2", _build_conv(wide, wide, norm=norm))
            self.add_module(f"fcn{stage}_3", _build_conv(wide, end, norm=norm, std=std))
        self.up5 = _build_upsampling(end, stride=4)
        self.up4 = _build_upsampling(end, stride=2)
        fused = _scale(_FUSE_WIDTH, width)
        self.fuse_1 = _build_conv(3 * end, fused, norm=norm)
        self.fuse_2 = _build_conv(fused, fused, norm=norm)
        self.fuse_3 = nn.Conv2d(fused, 2, kernel_size=1)
        weight_init.c2_msra_fill(self.fuse_3)
        self.up = _build_upsampling(2, stride=4)

    def find_raw(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) -> directions of any length, (N, 2, H/4, W/4)."""
        features, ends = inputs, []
        for index, names in enumerate(self._stages):
            if index:
                pool = F.max_pool2d if index < 3 else F.avg_pool2d
                features = pool(features, 2)
            for name in names:
                features = self.get_submodule(name)(features)
            ends.append(features)
        branch3, branch4, branch5 = (
            self._run_branch(stage, ends[stage - 1]) for stage in (3, 4, 5)
        )
        joined = torch.cat([branch3, self.up5(branch5), self.up4(branch4)], dim=1)
        raw: Tensor = self.fuse_3(self.fuse_2(self.fuse_1(joined)))
        return raw

    def forward(self, inputs: Tensor, is_thing: Tensor) -> Tensor:
        """Directions of the things.

        Args:
            inputs: (N, C, H, W); sides are multiples of `SIZE_DIVISIBILITY`.
            is_thing: (N, H, W) bool.

        Returns:
            (N, 2, H, W) fp32, x to the right and y down, of length 1; 0 elsewhere.
        """
        return scale_to_unit(self.up(self.find_raw(inputs)).float() * is_thing[:, None])

    def _run_branch(self, stage: int, features: Tensor) -> Tensor:
        for number in (1, 2, 3):
            features = self.get_submodule(f"fcn{stage}_{number}")(features)
        return features


class EnergyNet(nn.Module):
    """Energy levels from directions alone.

    Args:
        num_levels: B.
        width: factor of all channels but the last, 1 for those of the paper.
        norm: after every convolution but the last one; "" for none, as in the paper.
        dropout: share of the values of the last two convolutions that training drops.
    """

    def __init__(
        self, *, num_levels: int, width: float = 1.0, norm: str = "", dropout: float = 0.3
    ) -> None:
        super().__init__()
        first, wide = (_scale(channels, width) for channels in _ENERGY_WIDTHS)
        self.conv1_1 = _build_conv(2, first, kernel_size=_LARGE_KERNEL, norm=norm)
        self.conv1_2 = _build_conv(first, wide, kernel_size=_LARGE_KERNEL, norm=norm)
        self.conv2_1 = _build_conv(wide, wide, kernel_size=_LARGE_KERNEL, norm=norm)
        self.conv2_2 = _build_conv(wide, wide, kernel_size=_LARGE_KERNEL, norm=norm)
        self.conv2_3 = _build_conv(wide, wide, kernel_size=_LARGE_KERNEL, norm=norm)
        self.conv2_4 = _build_conv(wide, wide, kernel_size=_LARGE_KERNEL, norm=norm)
        self.fcn1 = _build_conv(wide, wide, norm=norm)
        self.fcn2 = _build_conv(wide, num_levels)
        self.up = _build_upsampling(num_levels, stride=4)
        self.dropout = dropout

    def forward(self, directions: Tensor, is_thing: Tensor) -> Tensor:
        """Logits of the levels.

        Args:
            directions: (N, 2, H, W), as `DirectionNet` returns them.
            is_thing: (N, H, W) bool.

        Returns:
            (N, B, H, W) fp32, all 0 where no thing is, so that the first level is the largest.
        """
        features = F.avg_pool2d(self.conv1_2(self.conv1_1(directions)), 2)
        features = self.conv2_4(self.conv2_3(self.conv2_2(self.conv2_1(features))))
        features = self._drop(self.fcn1(F.avg_pool2d(features, 2)))
        # parity: a ReLU before the upsampling; logits need none.
        logits = self.up(self._drop(self.fcn2(features)))
        return logits.float() * is_thing[:, None]

    def _drop(self, features: Tensor) -> Tensor:
        return F.dropout(features, self.dropout, self.training)


def scale_to_unit(vectors: Tensor, squared_floor: float = _SQUARED_FLOOR) -> Tensor:
    """Vectors (N, 2, ...) at unit length, those near 0 at none; fp32 or fp64."""
    squared = vectors.square().sum(dim=1, keepdim=True)
    return vectors * squared.clamp(min=squared_floor).rsqrt()


def make_bilinear_filters(channels: int, size: int) -> Tensor:
    """Weights of a transposed convolution that enlarges each channel bilinearly.

    Returns:
        (channels, channels, size, size), zero between different channels.
    """
    half = (size + 1) // 2
    centre = half - 1.0 if size % 2 else half - 0.5
    slope = 1 - (torch.arange(size) - centre).abs() / half
    return torch.eye(channels)[:, :, None, None] * (slope[:, None] * slope)


def _scale(channels: int, width: float) -> int:
    return max(_MIN_WIDTH, round(channels * width))


def _build_conv(
    before: int, after: int, *, kernel_size: int = 1, norm: str = "", std: float | None = None
) -> Conv2d:
    conv = Conv2d(
        before,
        after,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, after),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    if std is not None:
        nn.init.normal_(conv.weight, std=std)
    return conv


def _build_upsampling(channels: int, *, stride: int) -> nn.ConvTranspose2d:
    """A learnable bilinear enlargement by `stride`."""
    size = 2 * stride
    layer = nn.ConvTranspose2d(
        channels, channels, size, stride=stride, padding=size // 4, bias=False
    )
    with torch.no_grad():
        layer.weight.copy_(make_bilinear_filters(channels, size))
    return layer
