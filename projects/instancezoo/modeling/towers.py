"""Towers of 3x3 convolutions that dense heads are made of.

Legend: N images, C channels, H W map size, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from instancezoo.errors import ConfigError
from instancezoo.layers.deform_conv import DeformConv

DEFORMABLE = ("", "v1", "v2")
NORMS = ("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")
LEVEL_NORMS = ("GN", "NaiveGN", "BN", "SyncBN", "none")  # of `build_level_tower`
# A sigmoid cannot start at 0 or 1.
PRIOR_LIMITS = (1e-4, 0.9999)
_NUM_GROUPS = 32  # of every group norm in Detectron2
_INITIAL_STD = 0.01


def build_conv_block(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    norm: str = "GN",
    deformable: str = "",
    bias: bool | None = None,
) -> nn.Module:
    """Convolution with weights N(0, 0.01), normalisation, ReLU; same map size.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd.
        norm: a name Detectron2's `get_norm` knows.
        deformable: "", "v1" or "v2".
        bias: if True, the convolution has one; None: only without a norm.

    Returns:
        A module (N, in_channels, H, W) -> (N, out_channels, H, W) with `.weight` and `.norm`.

    Raises:
        ValueError: unknown `deformable`.
    """
    return _build_conv(
        in_channels,
        out_channels,
        kernel_size,
        deformable,
        bias=not norm if bias is None else bias,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )


def build_tower(
    in_channels: int,
    channels: int,
    num_convs: int,
    *,
    norm: str = "GN",
    deformable: str = "",
    deformable_last_only: bool = False,
    bias: bool | None = None,
) -> nn.Sequential:
    """Stack `num_convs` blocks of `build_conv_block`.

    Args:
        in_channels: channels of the input.
        channels: channels of every output.
        num_convs: number of blocks.
        norm, deformable, bias: as in `build_conv_block`.
        deformable_last_only: only the last block is deformable.

    Returns:
        (N, in_channels, H, W) -> (N, channels, H, W).
    """
    blocks = []
    for index in range(num_convs):
        is_plain = deformable_last_only and index < num_convs - 1
        version = "" if is_plain else deformable
        width = channels if index else in_channels
        blocks.append(build_conv_block(width, channels, norm=norm, deformable=version, bias=bias))
    return nn.Sequential(*blocks)


class LevelTower(nn.ModuleList):
    """Convolutions, norms and ReLUs in sequence; a norm may be a list of one for each level."""

    def forward(self, features: Tensor, level: int) -> Tensor:
        """(N, C, H, W) of a level -> the same shape."""
        for module in self:
            module = module[level] if isinstance(module, nn.ModuleList) else module
            features = module(features)
        return features


def build_level_tower(
    channels: int, num_convs: int, num_levels: int, *, norm: str = "GN", deformable: str = ""
) -> LevelTower:
    """Build a tower of 3x3 convolutions with biases, also under a norm, that all levels share.

    Args:
        channels: of input and output.
        num_convs: number of convolutions.
        num_levels: L.
        norm: one of `LEVEL_NORMS`; batch norms have statistics, scale and shift for each level.
        deformable: "", "v1" or "v2", of the last convolution.
    """
    tower = LevelTower()
    for index in range(num_convs):
        version = deformable if index == num_convs - 1 else ""
        tower.append(_build_conv(channels, channels, deformable=version, bias=True))
        if norm in ("BN", "SyncBN"):
            tower.append(nn.ModuleList(get_norm(norm, channels) for _ in range(num_levels)))
        elif norm != "none":
            tower.append(get_norm("GN", channels))
        tower.append(nn.ReLU())
    return tower


def build_prediction(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, prior: float | None = None
) -> nn.Module:
    """Build a last convolution: weights N(0, 0.01), biases 0 or those of a prior probability.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd.
        prior: probability that a sigmoid of the output starts at, in (0, 1); None for bias 0
            (RetinaNet, section 4.1).
    """
    conv = _build_conv(in_channels, out_channels, kernel_size, bias=True)
    if prior is not None:
        nn.init.constant_(conv.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]
    return conv


def check_group_norm(norm: str, channels: Mapping[str, int]) -> None:
    """Raise `ConfigError` for numbers of channels that a group norm cannot divide.

    Args:
        norm: name of the norm.
        channels: key -> its number of channels.
    """
    for key, count in channels.items():
        if norm.endswith("GN") and count % _NUM_GROUPS:
            raise ConfigError(f"{key} is {count}; norm {norm} needs a multiple of {_NUM_GROUPS}")


class Scale(nn.Module):
    """A learnt factor, 1 at first, that adapts a shared layer to a level (FCOS, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        """Any shape, the same out."""
        return features * self.scale


def _build_conv(
    in_channels: int, out_channels: int, kernel_size: int = 3, deformable: str = "", **options: Any
) -> nn.Module:
    """Convolution of the same map size with weights N(0, 0.01) and bias 0."""
    if deformable not in DEFORMABLE:
        raise ValueError(f"deformable is '{deformable}'; it must be one of {DEFORMABLE}")
    options["padding"] = kernel_size // 2
    conv: nn.Module
    if deformable:
        modulated = deformable == "v2"
        conv = DeformConv(in_channels, out_channels, kernel_size, modulated=modulated, **options)
    else:
        conv = Conv2d(in_channels, out_channels, kernel_size, **options)
    nn.init.normal_(conv.weight, std=_INITIAL_STD)  # type: ignore[arg-type]
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
