"""COCO run-length encoding without full-size masks.

Legend: M masks, H W image size, h w window size, E ends of runs, T run lengths.

COCO counts pixels column by column: alternating lengths of background and foreground runs, the
first is background (0 if the first pixel is foreground), packed five bits to a printable character.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BITS_PER_CHARACTER = 5
CONTINUES = 1 << BITS_PER_CHARACTER
FIRST_CHARACTER = 48


def encode_bitmasks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode full-size masks; equal to `pycocotools.mask.encode`.

    Args:
        masks: (M, H, W) bool.

    Returns:
        M dicts `{"size": [H, W], "counts": str}`.

    Raises:
        ValueError: another shape or type.
    """
    _check_masks(masks)
    height, width = masks.shape[1:]
    corners = masks.new_zeros((len(masks), 2), dtype=torch.long)
    return encode_windows(masks, corners, height, width)


def encode_windows(
    windows: Tensor, corners: Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """Encode masks of which only a window is stored; all pixels outside it are background.

    Args:
        windows: (M, h, w) bool; foreground must lie inside the image.
        corners: (M, 2) long, row and column of each window's first pixel in the image.
        height, width: size of the image in pixels.

    Returns:
        As `encode_bitmasks`.

    Raises:
        ValueError: another shape or type.
    """
    _check_masks(windows)
    if corners.shape != (len(windows), 2):
        raise ValueError(f"corners must be (M, 2), got {tuple(corners.shape)}")
    return encode_ends(find_ends(windows, corners, height, width), len(windows), height, width)


def encode_ends(ends: Tensor, num_masks: int, height: int, width: int) -> list[dict[str, Any]]:
    """Encode masks of which only the ends of foreground runs are known.

    Args:
        ends: (E,) long, ascending: index of the mask * (H * W + 1) + column-major number of the
            pixel where a run begins or of the first pixel after it. Equal pairs cancel.
        num_masks: M.
        height, width: size of the image in pixels.

    Returns:
        M dicts `{"size": [H, W], "counts": str}`.
    """
    num_pixels = height * width
    numbers = cancel_pairs(ends).cpu().numpy()
    if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < num_masks * (num_pixels + 1):
        raise ValueError(
            f"ends of runs must ascend within {num_masks} masks of {height} x {width} pixels, got "
            f"{numbers[0]} to {numbers[-1]}"
        )
    owners, positions = np.divmod(numbers, num_pixels + 1)
    inside = positions < num_pixels  # a run up to the last pixel has no background after it
    owners, positions = owners[inside], positions[inside]
    # All masks in one row of pixels: the last run of each ends where the next mask begins.
    stops = np.concatenate(
        [owners * num_pixels + positions, np.arange(1, num_masks + 1) * num_pixels]
    )
    counts = np.diff(np.sort(stops, kind="stable"), prepend=0)
    lengths = np.bincount(owners, minlength=num_masks) + 1
    size = [int(height), int(width)]
    return [{"size": list(size), "counts": text} for text in pack_counts(counts, lengths)]


def find_ends(windows: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Ends of the foreground runs of each column, see `encode_ends`; arguments of `encode_windows`.

    Returns:
        (E,) long. A run that fills a column to its foot and goes on in the next has a pair of ends
        there.
    """
    columns = F.pad(windows.transpose(1, 2).to(torch.uint8), (1, 1))  # (M, w, h + 2)
    owner, x, y = (columns[..., 1:] != columns[..., :-1]).nonzero(as_tuple=True)  # (E,) each
    position = (corners[owner, 1] + x) * height + corners[owner, 0] + y
    return owner * (height * width + 1) + position


def _check_masks(masks: Tensor) -> None:
    # A cast to 8 bits would make an empty mask of 0.5 and of 256.
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be (M, H, W) bool, got {tuple(masks.shape)} {masks.dtype}")


def cancel_pairs(ends: Tensor) -> Tensor:
    """Remove values of an ascending (E,) tensor in pairs: a run goes on there."""
    values, counts = ends.unique_consecutive(return_counts=True)
    return values[counts % 2 == 1]


def pack_counts(counts: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Pack run lengths into COCO's strings (the compressed form of `counts`).

    Args:
        counts: (T,) int64, run lengths of all masks one after the other.
        lengths: (M,) int64, number of runs of each mask; their sum is T.

    Returns:
        M strings.
    """
    starts = np.cumsum(lengths) - lengths  # (M,)
    rank = np.arange(len(counts)) - np.repeat(starts, lengths)  # index within its mask
    values = counts.copy()
    # From the fourth run on, the difference from the run before last is stored: it is small.
    values[rank > 2] -= counts[np.flatnonzero(rank > 2) - 2]

    columns: list[np.ndarray] = []
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        character = values & (CONTINUES - 1)
        values = values >> BITS_PER_CHARACTER
        sign_bit = (character & (CONTINUES >> 1)) != 0
        more = pending & np.where(sign_bit, values != -1, values != 0)
        character = character + np.where(more, CONTINUES, 0) + FIRST_CHARACTER
        columns.append(np.where(pending, character, 0))
        pending = more
    if not columns:
        return [""] * len(lengths)
    table = np.stack(columns, axis=1).astype(np.uint8)  # (T, characters), 0 where there is none
    used = table > 0
    text = table[used].tobytes().decode("ascii")
    per_run = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    ends = per_run[starts + lengths]
    return [text[a:b] for a, b in zip(per_run[starts].tolist(), ends.tolist(), strict=True)]
