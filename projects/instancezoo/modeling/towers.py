"""Towers of 3x3 convolutions that dense heads are made of.

Legend: N images, C channels, H W map size, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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


def build_conv_block(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    norm: str = "GN",
    deformable: str = "",
    bias: bool | None = None,
    std: float = 0.01,
) -> nn.Module:
    """Convolution, normalisation, ReLU; same map size.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd.
        norm: a name Detectron2's `get_norm` knows.
        deformable: "", "v1" or "v2".
        bias: whether the convolution has one; None: only without a norm.
        std: standard deviation of the initial weights, N(0, std).

    Returns:
        A module (N, in_channels, H, W) -> (N, out_channels, H, W) with `.weight` and `.norm`.

    Raises:
        ValueError: unknown `deformable`.
    """
    if deformable not in DEFORMABLE:
        raise ValueError(f"deformable is '{deformable}'; it must be one of {DEFORMABLE}")
    shared = {
        "padding": kernel_size // 2,
        "bias": not norm if bias is None else bias,
        "norm": get_norm(norm, out_channels),
        "activation": F.relu,
    }
    if deformable:
        block: nn.Module = DeformConv(
            in_channels, out_channels, kernel_size, modulated=deformable == "v2", **shared
        )
    else:
        block = Conv2d(in_channels, out_channels, kernel_size, **shared)
    init_normal(block, std)
    return block


def build_tower(
    in_channels: int,
    channels: int,
    num_convs: int,
    *,
    norm: str = "GN",
    deformable: str = "",
    deformable_last_only: bool = False,
    bias: bool | None = None,
    std: float = 0.01,
) -> nn.Sequential:
    """Stack `num_convs` blocks of `build_conv_block`.

    Args:
        in_channels: channels of the input.
        channels: channels of every output.
        num_convs: number of blocks.
        norm, deformable, bias, std: as in `build_conv_block`.
        deformable_last_only: only the last block is deformable.

    Returns:
        (N, in_channels, H, W) -> (N, channels, H, W).
    """
    blocks = []
    for index in range(num_convs):
        is_plain = deformable_last_only and index < num_convs - 1
        blocks.append(
            build_conv_block(
                in_channels if index == 0 else channels,
                channels,
                norm=norm,
                deformable="" if is_plain else deformable,
                bias=bias,
                std=std,
            )
        )
    return nn.Sequential(*blocks)


class LevelTower(nn.ModuleList):
    """Convolutions, norms and ReLUs in a row; a norm may be a list of one for each level."""

    def forward(self, features: Tensor, level: int) -> Tensor:
        """(N, C, H, W) of a level -> the same shape."""
        for module in self:
            norm_or_other = module[level] if isinstance(module, nn.ModuleList) else module
            features = norm_or_other(features)
        return features


def build_level_tower(
    channels: int, num_convs: int, num_levels: int, *, norm: str = "GN", deformable: str = ""
) -> LevelTower:
    """Build a tower of 3x3 convolutions shared by all levels; they have a bias under a norm, too.

    Args:
        channels: of input and output.
        num_convs: number of convolutions.
        num_levels: L.
        norm: one of `LEVEL_NORMS`; batch norms have statistics, scale and shift for each level.
        deformable: "", "v1" or "v2", of the last convolution.
    """
    tower = LevelTower()
    for index in range(num_convs):
        if deformable and index == num_convs - 1:
            conv: nn.Module = DeformConv(
                channels, channels, bias=True, modulated=deformable == "v2"
            )
        else:
            conv = Conv2d(channels, channels, kernel_size=3, padding=1)
        init_normal(conv)
        tower.append(conv)
        if norm in ("BN", "SyncBN"):
            tower.append(nn.ModuleList(get_norm(norm, channels) for _ in range(num_levels)))
        elif norm != "none":
            tower.append(get_norm("GN", channels))
        tower.append(nn.ReLU())
    return tower


def build_prediction(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, prior: float | None = None
) -> Conv2d:
    """Build a last convolution: weights N(0, 0.01), biases 0 or those of a prior probability.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd.
        prior: probability that a sigmoid of the output starts at, in (0, 1); None for bias 0.
    """
    conv = Conv2d(in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2)
    init_normal(conv, bias=0.0 if prior is None else prior_bias(prior))
    return conv


def check_group_norm(norm: str, channels: Mapping[str, int]) -> None:
    """Raise `ConfigError` for numbers of channels that a group norm cannot divide.

    Args:
        norm: name of the norm.
        channels: number of each key.
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


def init_normal(conv: nn.Module, std: float = 0.01, bias: float = 0.0) -> None:
    """Draw a convolution's weight from N(0, std) and fill its bias, in place."""
    nn.init.normal_(conv.weight, std=std)  # type: ignore[arg-type]
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]


def prior_bias(probability: float) -> float:
    """Bias that makes a sigmoid start at `probability` (RetinaNet, section 4.1)."""
    return -math.log((1 - probability) / probability)
