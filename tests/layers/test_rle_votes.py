"""Run lengths: mirrored and merged masks against full-size ones."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers.rle import encode_bitmasks, pack_counts
from instancezoo.layers.rle_votes import find_runs, mirror_masks, unpack_counts, vote_masks

SIZES = [(1, 1), (1, 7), (7, 1), (13, 17), (64, 50)]
SHARES = [0.0, 0.02, 0.5, 0.98, 1.0]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def noise(request):
    """Masks of every density, from empty to full: (10, H, W) bool."""
    share = torch.tensor(SHARES).repeat(2)[:, None, None]
    return torch.rand(10, *request.param, generator=torch.Generator().manual_seed(0)) < share


def test_unpacking_undoes_packing(noise):
    texts = [mask["counts"] for mask in encode_bitmasks(noise)]
    counts, lengths = unpack_counts(texts)
    assert pack_counts(counts, lengths) == texts
    assert counts.sum() == noise.numel()


def test_long_runs_of_pycocotools_are_read():
    mask = np.zeros((3000, 2000, 1), dtype=np.uint8, order="F")
    mask[5:2990, 3:1990] = 1
    mask[100:200, 50:60] = 0
    (encoded,) = coco_mask.encode(mask)
    text = encoded["counts"].decode("ascii")
    counts, lengths = unpack_counts([text, text])
    assert lengths[0] == lengths[1] and (counts[: lengths[0]] == counts[lengths[0] :]).all()
    assert counts[1 : lengths[0] : 2].sum() == mask.sum()


def test_mirrored_masks_are_flipped_ones(noise):
    assert mirror_masks(encode_bitmasks(noise)) == encode_bitmasks(noise.flip(2))


def test_votes_are_those_of_pixels(noise):
    weights = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    groups = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 3, 1])
    votes = torch.zeros(4, *noise.shape[1:], dtype=torch.long)
    votes.index_add_(0, groups, noise * weights[:, None, None])
    totals = torch.zeros(4, dtype=torch.long).index_add(0, groups, weights)
    expected = 2 * votes >= totals[:, None, None]
    assert vote_masks(encode_bitmasks(noise), weights, groups, 4) == encode_bitmasks(expected)


def test_no_masks_give_none():
    assert mirror_masks([]) == []
    none = torch.zeros(0, dtype=torch.long)
    assert vote_masks([], none, none, 0) == []
    assert find_runs([]).shape == (0, 2)
