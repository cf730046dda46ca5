"""Pyramid levels of dense heads: which object belongs where, and maps of several levels as one.

Legend: N images, C channels, H W map size, L levels, P points of all levels, M instances,
R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from instancezoo.errors import ConfigError, check_choice


def match_scale_ranges(sizes: Tensor, ranges: Tensor) -> Tensor:
    """Levels that predict objects of given sizes; ranges may overlap.

    Args:
        sizes: (M,) pixels.
        ranges: (L, 2) pixels, lowest and highest size, both included.

    Returns:
        (M, L) bool.
    """
    return (sizes[:, None] >= ranges[:, 0]) & (sizes[:, None] <= ranges[:, 1])


def locate_points(
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor:
    """Where the cells of all levels' maps stand in the image (FCOS, section 3.1).

    Args:
        map_sizes: L pairs, height and width of each level's map.
        strides: L numbers of pixels.
        device: of the result.

    Returns:
        (P, 2) fp32 x and y in pixels: column * stride + stride // 2 and the same of the row. Levels
        follow each other, row-major within a level.
    """
    levels = []
    for size, stride in zip(map_sizes, strides, strict=True):
        axes = (torch.arange(length, device=device) * stride + stride // 2 for length in size)
        y, x = torch.meshgrid(*axes, indexing="ij")
        levels.append(torch.stack([x.flatten(), y.flatten()], dim=1))
    return torch.cat(levels).float()


def find_levels(
    key: str, names: Sequence[str], available: Iterable[str], source: str = "the backbone's maps"
) -> list[int]:
    """Index of each named feature map among those that exist.

    Args:
        key: config key that lists `names`, for the message.
        names: at least one.
        available: names of the maps, finest first.
        source: what these maps are, for the message.

    Raises:
        ConfigError: no name, or an unknown one.
    """
    known = list(available)
    if not names or not set(names) <= set(known):
        raise ConfigError(
            f"{key} is {list(names)}; it must name one map or more of {source}: {', '.join(known)}"
        )
    return [known.index(name) for name in names]


def check_pyramid(key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec]) -> None:
    """Check that layers which all levels share can work on the named maps, finest first.

    Args:
        key: config key that lists `names`, for the message.
        names: maps of the backbone.
        shapes: what the backbone gives.

    Raises:
        ConfigError: no map, an unknown one, a stride that is not twice the one before, or other
            channels.
    """
    find_levels(key, names, shapes)
    strides = [shapes[name].stride or 1 for name in names]
    if strides != [strides[0] * 2**level for level in range(len(strides))]:
        raise ConfigError(f"{key} has strides {strides}; each must be twice the one before")
    channels = [shapes[name].channels for name in names]
    if len(set(channels)) > 1:
        raise ConfigError(
            f"{key} has maps of {channels} channels; all must have the same number, as those of a "
            "feature pyramid"
        )


def check_grid_stride(
    key: str, stride: int, names: Sequence[str], shapes: Mapping[str, ShapeSpec]
) -> None:
    """Check that maps can be doubled up to a grid: its stride is that of the finest or finer.

    Args:
        key: config key of `stride`, for the message.
        stride: of the grid in pixels.
        names: maps of the backbone.
        shapes: what the backbone gives.

    Raises:
        ConfigError: it is no power of two, or coarser.
    """
    finest = min(shapes[name].stride or 1 for name in names)
    check_choice(key, stride, [2**power for power in range(finest.bit_length())])


def index_levels(
    map_sizes: Sequence[tuple[int, int]], device: torch.device | str | None = None
) -> Tensor:
    """Level of each point in the order of `locate_points`: (P,) long."""
    counts = torch.tensor([height * width for height, width in map_sizes], device=device)
    return torch.repeat_interleave(counts)


def check_levels(node: CfgNode, key: str, shapes: Mapping[str, ShapeSpec]) -> None:
    """Check a node's `IN_FEATURES`, `FPN_STRIDES` and `SIZES_OF_INTEREST` against a backbone.

    Args:
        node: of a method whose levels predict objects between two sizes.
        key: of `node`, for the message.
        shapes: what the backbone gives.

    Raises:
        ConfigError: the backbone lacks a level, or has another stride there; or there is not one
            size between each two levels, the smallest first.
    """
    find_levels(f"{key}.IN_FEATURES", node.IN_FEATURES, shapes)
    strides = [shapes[name].stride for name in node.IN_FEATURES]
    if list(node.FPN_STRIDES) != strides:
        raise ConfigError(
            f"{key}.FPN_STRIDES is {list(node.FPN_STRIDES)}, but the strides of "
            f"{', '.join(node.IN_FEATURES)} are {strides}"
        )
    sizes = list(node.SIZES_OF_INTEREST)
    if len(sizes) != len(strides) - 1:
        raise ConfigError(
            f"{key}.SIZES_OF_INTEREST has {len(sizes)} sizes; between {len(strides)} levels there "
            f"are {len(strides) - 1}"
        )
    are_numbers = all(isinstance(size, int | float) and size > 0 for size in sizes)
    if not are_numbers or sizes != sorted(set(sizes)):
        raise ConfigError(
            f"{key}.SIZES_OF_INTEREST is {sizes}; it must be positive numbers in ascending order"
        )


def list_map_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Height and width of each of L maps (N, C, H_l, W_l)."""
    return [(level.shape[2], level.shape[3]) for level in maps]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Join the maps of all levels, row-major within a level.

    Args:
        maps: L tensors (N, C, H_l, W_l).

    Returns:
        (N, sum of H_l * W_l, C).
    """
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)


def level_offsets(num_grids: Sequence[int]) -> list[int]:
    """First cell of each of L grids of given sides in `flatten_levels`' order, and the total."""
    return list(accumulate((side * side for side in num_grids), initial=0))


def find_best(scores: Tensor, groups: Tensor, limit: int) -> Tensor:
    """Find the best rows of each group, such as the candidates of one image and level.

    Args:
        scores: (R,) fp32.
        groups: (R,) long, a number for each group.
        limit: maximum number of rows of a group; the first of equal ones are taken.

    Returns:
        (R,) bool.
    """
    by_score = scores.argsort(descending=True, stable=True)
    # Stable: within its group each row keeps its place among the scores.
    groups, by_group = groups[by_score].sort(stable=True)
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
    is_best = torch.zeros_like(groups, dtype=torch.bool)
    is_best[by_score[by_group]] = rank < limit
    return is_best
