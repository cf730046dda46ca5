"""COCO run-length encoding without full-size masks.

Legend: N masks, H W image size, h w window size, E run boundaries, T run lengths.

COCO counts pixels column by column: lengths of background and foreground runs in turn, the first
of them background (0 if the first pixel is foreground), packed five bits to a printable character.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BITS_PER_CHARACTER = 5
_CONTINUES = 1 << _BITS_PER_CHARACTER
_FIRST_CHARACTER = 48


def encode_bitmasks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode full-size masks; equal to `pycocotools.mask.encode`.

    Args:
        masks: (N, H, W) bool.

    Returns:
        N dicts `{"size": [H, W], "counts": str}`.
    """
    height, width = masks.shape[-2:]
    corners = masks.new_zeros((len(masks), 2), dtype=torch.long)
    return encode_windows(masks, corners, height, width)


def encode_windows(
    windows: Tensor, corners: Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """Encode masks of which only a window is stored; all pixels outside it are background.

    Args:
        windows: (N, h, w) bool; foreground must lie inside the image.
        corners: (N, 2) long, row and column of each window's first pixel in the image.
        height, width: size of the image in pixels.

    Returns:
        N dicts `{"size": [H, W], "counts": str}`.
    """
    positions, owners = find_boundaries(windows, corners, height)
    return encode_boundaries(positions, owners, len(windows), height, width)


def encode_boundaries(
    positions: np.ndarray, owners: np.ndarray, num_masks: int, height: int, width: int
) -> list[dict[str, Any]]:
    """Encode masks of which only the ends of runs are known.

    Args:
        positions: (E,) int64, where foreground begins and ends in turn, as column-major pixel
            numbers; ascending for each mask.
        owners: (E,) int64, ascending, the mask of each.
        num_masks: N.
        height, width: size of the image in pixels.

    Returns:
        N dicts `{"size": [H, W], "counts": str}`.
    """
    counts, lengths = _count_runs(positions, owners, num_masks, height * width)
    size = [int(height), int(width)]
    return [{"size": list(size), "counts": text} for text in pack_counts(counts, lengths)]


def pack_counts(counts: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Pack run lengths into COCO's strings (the compressed form of `counts`).

    Args:
        counts: (T,) int64, run lengths of all masks one after the other.
        lengths: (N,) int64, how many of them belong to each mask; their sum is T.

    Returns:
        N strings.
    """
    starts = np.cumsum(lengths) - lengths  # (N,)
    rank = np.arange(len(counts)) - np.repeat(starts, lengths)  # place within its mask
    values = counts.copy()
    # From the fourth run on, the difference to the run before last is stored: it is small.
    values[rank > 2] -= counts[np.flatnonzero(rank > 2) - 2]

    columns: list[np.ndarray] = []
    pending = np.ones(len(values), dtype=bool)
    while pending.any():
        character = values & (_CONTINUES - 1)
        values = values >> _BITS_PER_CHARACTER
        sign_bit = (character & (_CONTINUES >> 1)) != 0
        more = pending & np.where(sign_bit, values != -1, values != 0)
        character = character + np.where(more, _CONTINUES, 0) + _FIRST_CHARACTER
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


def find_boundaries(windows: Tensor, corners: Tensor, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Where foreground runs begin and end, as column-major pixel numbers, and whose they are.

    Args:
        windows, corners: as in `encode_windows`.
        height: of the image in pixels.

    Returns:
        Positions (E,) and owners (E,), int64, as in `encode_boundaries`.
    """
    columns = F.pad(windows.transpose(1, 2).to(torch.uint8), (1, 1))  # (N, w, h + 2)
    owner, x, y = (columns[..., 1:] != columns[..., :-1]).nonzero(as_tuple=True)  # (E,) each
    position = (corners[owner, 1] + x) * height + corners[owner, 0] + y
    positions, owners = position.cpu().numpy(), owner.cpu().numpy()
    # A run that fills a column to its foot goes on at the head of the next: no boundary there.
    joined = (positions[1:] == positions[:-1]) & (owners[1:] == owners[:-1])
    keep = np.ones(len(positions), dtype=bool)
    keep[1:][joined] = False
    keep[:-1][joined] = False
    return positions[keep], owners[keep]


def _count_runs(
    positions: np.ndarray, owners: np.ndarray, num_masks: int, num_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths (T,) of all masks in turn, and the number of runs of each mask (N,)."""
    inside = positions < num_pixels  # a run up to the last pixel has no background after it
    positions, owners = positions[inside], owners[inside]
    runs = np.bincount(owners, minlength=num_masks) + 1  # (N,)
    ends = np.full(int(runs.sum()), num_pixels, dtype=np.int64)
    last_of_mask = np.zeros(len(ends), dtype=bool)
    last_of_mask[np.cumsum(runs) - 1] = True
    ends[~last_of_mask] = positions
    begins = np.concatenate([[0], ends[:-1]])
    begins[1:][last_of_mask[:-1]] = 0
    return ends - begins, runs
