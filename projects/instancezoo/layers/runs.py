"""Masks given as foreground runs: to COCO RLE, to full masks, single pixels changed.

Legend: M masks, H W image size, E ends of runs, U pixels, R owners.

Pixels are numbered column by column. `positions` (E,) long are the numbers of the pixels where
foreground begins, or of the first pixel after it; for each mask they ascend within [0, H * W], none
twice. `lengths` (M,) long are the numbers of positions of the masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.extension import find_compiled, register_fake
from instancezoo.layers.rle import cancel_pairs, encode_ends

# Bytes per foreground pixel of a chunk: its numbers as long.
_BYTES_PER_PIXEL = 64


def encode_runs(
    positions: Tensor, lengths: Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """COCO RLE of masks given as runs.

    Args:
        positions, lengths: as above.
        height, width: size of the image in pixels.

    Returns:
        M dicts `{"size": [H, W], "counts": str}`.
    """
    pack = find_compiled("pack_runs", positions.device)
    if pack is None:
        ends = torch.repeat_interleave(lengths) * (height * width + 1) + positions
        return encode_ends(ends, len(lengths), height, width)
    characters, sizes = pack(positions, lengths, height * width)
    text, stop = characters.numpy().tobytes().decode("ascii"), 0
    codes: list[dict[str, Any]] = []
    for size in sizes.tolist():
        start, stop = stop, stop + size
        codes.append({"size": [int(height), int(width)], "counts": text[start:stop]})
    return codes


def fill_runs(positions: Tensor, lengths: Tensor, height: int, width: int) -> Tensor:
    """Full masks given as runs.

    Args:
        positions, lengths: as above; each run has a begin and an end.
        height, width: size of the image in pixels.

    Returns:
        (M, H, W) bool, on the device of the positions.
    """
    fill = find_compiled("fill_runs", positions.device) or _fill_runs
    masks: Tensor = fill(positions, lengths, height, width)
    return masks


def split_ends(ends: Tensor, num_masks: int, num_pixels: int) -> tuple[Tensor, Tensor]:
    """Ends as `encode_ends` takes them to positions and lengths.

    Args:
        ends: (E,) long, ascending: index of the mask * (num_pixels + 1) + position.
        num_masks: M.
        num_pixels: H * W.

    Returns:
        Positions (E,) and lengths (M,), long.
    """
    owners = ends.div(num_pixels + 1, rounding_mode="floor")
    return ends - owners * (num_pixels + 1), owners.bincount(minlength=num_masks)


def set_pixels(
    positions: Tensor, lengths: Tensor, pixels: Tensor, inside: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Change single pixels of masks given as runs.

    Args:
        positions, lengths: as above.
        pixels: (U, 3) long, mask, row and column, none twice.
        inside: (U,) bool, which of them shall be foreground.
        height, width: size of the image in pixels.

    Returns:
        Positions and lengths.
    """
    num_numbers = height * width + 1
    ends = torch.repeat_interleave(lengths) * num_numbers + positions
    owner, y, x = pixels.unbind(1)
    numbers = owner * num_numbers + x * height + y  # (U,)
    # A pixel is foreground after an odd number of ends; other masks have an even number each.
    was_inside = torch.searchsorted(ends, numbers, right=True) % 2 == 1
    wrong = numbers[inside != was_inside]
    if len(wrong) == 0:
        return positions, lengths
    ends = torch.cat([ends, wrong, wrong + 1]).sort().values
    return split_ends(cancel_pairs(ends), len(lengths), height * width)


def expand_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the items of each owner.

    Args:
        counts: (R,) long, items of each owner.

    Returns:
        Owner and number within the owner, from 0 on, of all items, long.
    """
    owners = torch.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    # Unlike `len`, the shape stays open in a trace.
    numbers = torch.arange(owners.shape[0], device=counts.device)
    return owners, numbers - starts.index_select(0, owners)


def split_counts(counts: Tensor, most: int) -> list[int]:
    """Cut consecutive owners into parts of about `most` items.

    Args:
        counts: (R,) long, items of each owner; one owner may have more than `most`.
        most: items.

    Returns:
        Number of owners of each part.
    """
    part = counts.cumsum(0).div(max(1, most), rounding_mode="floor")
    sizes: list[int] = part.unique_consecutive(return_counts=True)[1].tolist()
    return sizes


def _fill_runs(positions: Tensor, lengths: Tensor, height: int, width: int) -> Tensor:
    """The plain version of the operator: only foreground costs."""
    masks = positions.new_zeros((len(lengths), height, width), dtype=torch.bool)
    begins, stops = positions.view(-1, 2).unbind(1)
    owners = torch.repeat_interleave(lengths)[::2]
    sizes = stops - begins
    parts = split_counts(sizes, DEFAULT_BUDGET // _BYTES_PER_PIXEL)
    runs = zip(sizes.split(parts), begins.split(parts), owners.split(parts), strict=True)
    for size, begin, owner in runs if parts else ():
        run, within = expand_counts(size)
        number = begin.index_select(0, run) + within
        x = number.div(height, rounding_mode="floor")
        y = number - x * height
        index = (owner.index_select(0, run) * height + y) * width + x
        masks.view(-1).index_fill_(0, index, 1)  # not True: it cannot be traced
    return masks


@register_fake("pack_runs")
def _shape_text(positions: Tensor, lengths: Tensor, num_pixels: int) -> tuple[Tensor, Tensor]:
    num_characters = torch.library.get_ctx().new_dynamic_size()
    return (
        positions.new_empty((num_characters,), dtype=torch.uint8),
        positions.new_empty((len(lengths),)),
    )


@register_fake("fill_runs")
def _shape_masks(positions: Tensor, lengths: Tensor, height: int, width: int) -> Tensor:
    return positions.new_empty((len(lengths), height, width), dtype=torch.bool)
