"""Masks as runs, against pycocotools' encode and decode."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers import extension
from instancezoo.layers.rle import cancel_pairs, find_ends
from instancezoo.layers.runs import (
    encode_runs,
    expand_counts,
    fill_runs,
    set_pixels,
    split_counts,
    split_ends,
)

pytestmark = pytest.mark.usefixtures("op_version")


def _find_runs(masks):
    count, height, width = masks.shape
    ends = find_ends(masks, torch.zeros(count, 2, dtype=torch.long), height, width)
    return split_ends(cancel_pairs(ends.sort().values), count, height * width)


def _encode(masks):
    codes = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks.numpy()]
    return [{"size": list(c["size"]), "counts": c["counts"].decode("ascii")} for c in codes]


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (13, 17), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_both_ways_out_equal_pycocotools(size, share):
    generator = torch.Generator().manual_seed(sum(size))
    masks = torch.rand(6, *size, generator=generator) < share
    masks[1] = False
    masks[2] = True
    masks[3, :, size[1] // 2 :] = True
    runs = _find_runs(masks)
    assert encode_runs(*runs, *size) == _encode(masks)
    assert torch.equal(fill_runs(*runs, *size), masks)


def test_no_mask_and_no_pixel():
    none = torch.zeros(0, dtype=torch.long)
    assert encode_runs(none, none, 5, 7) == []
    assert fill_runs(none, none, 5, 7).shape == (0, 5, 7)
    empty = torch.zeros(2, dtype=torch.long)
    for size in ((0, 0), (0, 4), (4, 0), (4, 5)):
        expected = _encode(torch.zeros(2, *size, dtype=torch.bool))
        assert encode_runs(none, empty, *size) == expected
        assert not fill_runs(none, empty, *size).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_single_pixels_are_set(share):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 9, 8, generator=generator) < share
    pixels = (torch.rand(5, 9, 8, generator=generator) < 0.4).nonzero()
    inside = torch.rand(len(pixels), generator=generator) < 0.5
    found = set_pixels(*_find_runs(masks), pixels, inside, 9, 8)
    masks[tuple(pixels.T)] = inside
    assert all(torch.equal(a, b) for a, b in zip(found, _find_runs(masks), strict=True))


def test_counts_are_expanded_and_split():
    counts = torch.tensor([0, 3, 0, 2, 9, 1])
    owners, within = expand_counts(counts)
    assert owners.tolist() == [1, 1, 1, 3, 3, *[4] * 9, 5]
    assert within.tolist() == [0, 1, 2, 0, 1, *range(9), 0]
    for most in (1, 4, 100):
        parts = split_counts(counts, most)
        assert sum(parts) == len(counts)
        assert all(part.sum() <= most or part.max() > most / 2 for part in counts.split(parts))
    assert split_counts(counts[:0], 5) == []


def test_operators_are_well_registered(op_version):
    ops = [
        extension.find_compiled(name, torch.device("cpu")) for name in ("pack_runs", "fill_runs")
    ]
    if op_version == "plain":
        assert ops == [None, None]
        return
    pack, fill = ops
    runs = _find_runs(torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0)) < 0.5)
    torch.library.opcheck(pack.default, (*runs, 72))
    torch.library.opcheck(fill.default, (*runs, 9, 8))
    for positions, lengths in (([5, 3], [2]), ([3, 99], [2]), ([-1, 3], [2]), ([3, 5], [1])):
        with pytest.raises(RuntimeError, match="positions"):
            pack(torch.tensor(positions), torch.tensor(lengths), 72)
        with pytest.raises(RuntimeError, match="positions"):
            fill(torch.tensor(positions), torch.tensor(lengths), 9, 8)
    with pytest.raises(RuntimeError, match="begin and an end"):
        fill(torch.tensor([1]), torch.tensor([1]), 9, 8)
    with pytest.raises(RuntimeError, match="int64"):
        pack(torch.tensor([1.0]), torch.tensor([1]), 9)
