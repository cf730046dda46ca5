"""`LabelMasks` against the steps of the post-processing, written out for each segment alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from instancezoo.errors import ConfigError
from instancezoo.modeling.masks import LabelMasks

pytestmark = pytest.mark.usefixtures("op_version")

STRIDE, PADDED, IMAGE = 4, (96, 128), (90, 117)
# The image's own size, sizes whose weights fp32 holds exactly, and others that it rounds.
SIZES = [IMAGE, (180, 234), (45, 58), (270, 351), (135, 175), (61, 203), (1, 1), (1, 300), (150, 2)]


def _make_labels(seed, height=24, width=32, num_labels=9, share=0.8):
    """Blocks and single cells of many labels side by side, some of the map without any."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, num_labels, (height // 4, width // 4)), np.ones((4, 4), int))
    noise = rng.random((height, width)) > share
    labels[noise] = rng.integers(0, num_labels, int(noise.sum()))
    return torch.from_numpy(labels)


def _resize_alone(masks, height, width):
    """(M, H, W): every segment's own map through every step."""
    maps = (masks.labels == masks.ids[:, None, None]).float()[:, None]
    maps = F.interpolate(maps, masks.padded_size, mode="nearest")
    maps = maps[:, :, : masks.image_size[0], : masks.image_size[1]]
    if (height, width) != masks.image_size:
        options = {"align_corners": False} if masks.resize == "bilinear" else {}
        parts = [
            F.interpolate(m[None], (height, width), mode=masks.resize, **options) for m in maps
        ]
        maps = torch.cat(parts)
    return maps[:, 0] >= 0.5


def _decode(codes, height, width):
    if not codes:
        return np.zeros((0, height, width), dtype=bool)
    return coco_mask.decode(codes).astype(bool).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_is_that_of_the_segment_alone(size, seed):
    masks = LabelMasks(torch.arange(1, 9), _make_labels(seed), PADDED, IMAGE)
    expected = _resize_alone(masks, *size)
    assert torch.equal(masks.bitmasks(*size), expected)
    codes = masks.rle(*size)
    assert np.array_equal(_decode(codes, *size), expected.numpy())
    assert codes == coco_encode(expected)


def coco_encode(masks):
    codes = coco_mask.encode(np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0)))
    return [{"size": list(c["size"]), "counts": c["counts"].decode()} for c in codes]


def test_a_pixel_that_is_half_of_each_belongs_to_both():
    labels = torch.tensor([[1, 2]])
    masks = LabelMasks(torch.tensor([2, 1]), labels, (1, 2), (1, 2)).bitmasks(1, 1)
    assert masks.flatten().tolist() == [True, True]


@pytest.mark.parametrize("size", [IMAGE, (45, 58), (180, 234)])
def test_nearest_resizes_the_labels(size):
    masks = LabelMasks(torch.arange(1, 9), _make_labels(3), PADDED, IMAGE, resize="nearest")
    found = masks.bitmasks(*size)
    assert found.sum(dim=0).max() == 1
    # torch rounds positions in fp32: it may take the neighbour where a position is a whole number
    assert (found != _resize_alone(masks, *size)).float().mean() < 1e-3
    assert np.array_equal(_decode(masks.rle(*size), *size), found.numpy())


def test_rows_are_chosen_repeated_and_joined():
    masks = LabelMasks(torch.arange(1, 9), _make_labels(4), PADDED, IMAGE)
    every = masks.bitmasks(70, 80)
    some = torch.tensor([5, 0, 5])
    assert torch.equal(masks[some].bitmasks(70, 80), every[some])
    assert masks[some].rle(70, 80) == [masks.rle(70, 80)[row] for row in some]
    joined = LabelMasks.cat([masks[2:4], masks[0]])
    assert torch.equal(joined.bitmasks(70, 80), every[[2, 3, 0]])
    assert len(joined) == 3 and joined.to("cpu").labels.dtype == torch.int64
    with pytest.raises(ValueError, match="different maps"):
        LabelMasks.cat([masks, LabelMasks(masks.ids, masks.labels + 1, PADDED, IMAGE)])


def test_labels_of_no_mask_and_masks_without_cells():
    labels = torch.tensor([[0, 3], [-1, 7]])
    masks = LabelMasks(torch.tensor([7, 12]), labels, (2, 2), (2, 2))
    assert masks.bitmasks(2, 2).flatten(1).int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert masks.bitmasks(5, 5).flatten(1).sum(dim=1).tolist()[1] == 0
    assert [code["counts"] for code in masks.rle(2, 2)] == ["31", "4"]
    nothing = masks[:0]
    assert nothing.rle(9, 9) == [] and nothing.bitmasks(9, 9).shape == (0, 9, 9)


def test_wrong_arguments_are_refused():
    ids, labels = torch.tensor([1]), torch.ones(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="ids must be"):
        LabelMasks(ids[None], labels, (2, 2), (2, 2))
    with pytest.raises(ValueError, match="must hold the image"):
        LabelMasks(ids, labels, (2, 2), (3, 2))
    with pytest.raises(ConfigError, match="bilinear, nearest"):
        LabelMasks(ids, labels, (2, 2), (2, 2), resize="cubic")
