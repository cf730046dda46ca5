"""Masks in COCO's run-length form: mirrored, and merged by a vote of their pixels.

Only the ends of runs are handled, so that neither time nor memory depends on the number of pixels.

Legend: M masks, G groups of masks, E ends of runs, R runs, T run lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instancezoo.layers.rle import BITS_PER_CHARACTER, CONTINUES, FIRST_CHARACTER, encode_ends

_SIGN = CONTINUES >> 1


def mirror_masks(masks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flip masks of one image from left to right.

    Args:
        masks: M COCO RLE dicts with `counts` as text.
    """
    if not masks:
        return []
    height, width = masks[0]["size"]
    starts, stops = find_runs(masks).unbind(1)  # (R,) each
    offset = starts // (height * width + 1) * (height * width + 1)  # of the mask
    first, last = (starts - offset) // height, (stops - offset - 1) // height
    # A run is cut where a column ends: a whole run would go from right to left.
    lengths = last - first + 1
    run = torch.arange(len(starts)).repeat_interleave(lengths)
    rank = torch.arange(len(run)) - (lengths.cumsum(0) - lengths)[run]
    column = first[run] + rank
    top = offset[run] + column * height
    shift = (width - 1 - 2 * column) * height
    pieces = torch.stack(
        [torch.maximum(starts[run], top), torch.minimum(stops[run], top + height)], dim=1
    )
    ends = (pieces + shift[:, None]).flatten().sort().values  # (2 * pieces,)
    return encode_ends(ends, len(masks), height, width)


def vote_masks(
    masks: Sequence[dict[str, Any]], weights: Tensor, groups: Tensor, num_groups: int
) -> list[dict[str, Any]]:
    """Merge the masks of each group: pixels with at least half of the group's weight are inside.

    Args:
        masks: M COCO RLE dicts of one image, with `counts` as text.
        weights: (M,) long, 1 or more each.
        groups: (M,) long, in [0, num_groups).
        num_groups: G; each has at least one mask.

    Returns:
        G COCO RLE dicts.
    """
    if not masks:
        return []
    height, width = masks[0]["size"]
    num_values = height * width + 1  # see `encode_ends`
    runs = find_runs(masks)  # (R, 2)
    owner = runs[:, :1] // num_values  # (R, 1)
    keys = (runs + (groups[owner] - owner) * num_values).flatten()
    changes = (weights[owner] * weights.new_tensor([1, -1])).flatten()
    keys, order = keys.sort()
    votes = changes[order].cumsum(0)  # 0 after the last end of each mask, and so of each group
    places, counts = keys.unique_consecutive(return_counts=True)
    votes = votes[counts.cumsum(0) - 1]  # after all changes at a place
    totals = weights.new_zeros(num_groups).index_add(0, groups, weights)
    inside = 2 * votes >= totals[places // num_values]
    before = torch.cat([inside.new_zeros(1), inside[:-1]])
    return encode_ends(places[inside != before], num_groups, height, width)


def find_runs(masks: Sequence[dict[str, Any]]) -> Tensor:
    """First pixel of each foreground run and the first one after it, numbered as in `encode_ends`.

    Args:
        masks: M COCO RLE dicts of one image, with `counts` as text.

    Returns:
        (R, 2) long, on the CPU, ascending.
    """
    counts, lengths = unpack_counts([mask["counts"] for mask in masks])
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(masks)), lengths)
    # All masks in one row of pixels; each mask's runs fill it.
    stops = np.cumsum(counts) + owner
    is_foreground = (np.arange(len(counts)) - np.repeat(starts, lengths)) % 2 == 1
    is_foreground &= counts > 0
    stops, run_lengths = stops[is_foreground], counts[is_foreground]
    return torch.from_numpy(np.stack([stops - run_lengths, stops], axis=1))


def unpack_counts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Undo `pack_counts`.

    Args:
        texts: M strings that `pack_counts` or pycocotools wrote.

    Returns:
        (T,) int64, run lengths of all masks one after the other; (M,) int64, number of each mask's.
    """
    codes = np.frombuffer("".join(texts).encode("ascii"), np.uint8).astype(np.int64)
    codes -= FIRST_CHARACTER
    is_last = codes & CONTINUES == 0
    first = np.flatnonzero(np.concatenate([[True], is_last[:-1]])) if len(codes) else codes
    last = np.flatnonzero(is_last)
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & (CONTINUES - 1)) << (BITS_PER_CHARACTER * place), first)
    values -= np.where(codes[last] & _SIGN, 1 << (BITS_PER_CHARACTER * (last - first + 1)), 0)
    characters = np.cumsum([len(text) for text in texts], dtype=np.int64)
    lengths = np.diff(np.searchsorted(last, characters - 1, side="right"), prepend=0)
    return _add_up(values, lengths), lengths


def _add_up(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Undo the differences to the run before last, which begin at a mask's fourth run."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    rank = np.arange(len(values)) - starts
    # Chains within a mask: its first run alone, then every other run.
    chain = np.where(rank == 0, 0, 1 + rank % 2)
    order = np.lexsort((rank, chain, starts))
    sums = np.cumsum(values[order])
    begins = np.flatnonzero(np.isin(rank[order], (0, 1, 2)))
    before = np.concatenate([[0], sums])[begins]
    sums -= np.repeat(before, np.diff(np.append(begins, len(values))))
    counts = np.empty_like(values)
    counts[order] = sums
    return counts
