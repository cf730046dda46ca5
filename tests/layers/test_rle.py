"""layers/rle.py against pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers.rle import encode_bitmasks, encode_ends, encode_windows


def _reference(masks: torch.Tensor) -> list[dict]:
    codes = [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    return [{"size": c["size"], "counts": c["counts"].decode("ascii")} for c in codes]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 13), (3, 64, 1), (2, 1, 50), (4, 150, 201)])
def test_random_masks(shape, density):
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    assert encode_bitmasks(masks) == _reference(masks)


def test_runs_that_cross_columns():
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, :, 2:5] = True  # whole columns: one run
    masks[1, :, -2:] = True  # up to the last pixel
    masks[2, 3:, 0] = masks[2, :2, 1] = True  # the foot of one column joins the head of the next
    assert encode_bitmasks(masks) == _reference(masks)


def test_long_runs_need_several_characters():
    masks = torch.zeros(1, 3000, 2000, dtype=torch.bool)
    masks[0, 17:2900, 1500:] = True
    assert encode_bitmasks(masks) == _reference(masks)


def test_windows_equal_full_masks():
    generator = torch.Generator().manual_seed(1)
    windows = torch.rand((20, 8, 11), generator=generator) < 0.5
    corners = torch.stack(
        [
            torch.randint(0, 30 - 8 + 1, (20,), generator=generator),
            torch.randint(0, 40 - 11 + 1, (20,), generator=generator),
        ],
        dim=1,
    )
    masks = torch.zeros(20, 30, 40, dtype=torch.bool)
    for mask, window, (y, x) in zip(masks, windows, corners.tolist(), strict=True):
        mask[y : y + 8, x : x + 11] = window
    assert encode_windows(windows, corners, 30, 40) == _reference(masks)


def test_non_contiguous_and_none():
    masks = (torch.rand(9, 12, 4, generator=torch.Generator().manual_seed(2)) < 0.4).permute(
        2, 0, 1
    )
    assert encode_bitmasks(masks) == _reference(masks)
    assert encode_bitmasks(torch.zeros(0, 5, 5, dtype=torch.bool)) == []


@pytest.mark.parametrize(
    "masks", [torch.ones(5, 5) > 0, torch.ones(1, 1, 5, 5) > 0, torch.ones(1, 5, 5) / 2]
)
def test_what_is_no_stack_of_bool_masks_is_refused(masks):
    with pytest.raises(ValueError, match=r"\(M, H, W\) bool"):
        encode_bitmasks(masks)


@pytest.mark.parametrize("ends", [[-5, 3], [5, 300], [9, 3]])
def test_ends_of_runs_outside_of_the_masks_are_refused(ends):
    with pytest.raises(ValueError, match="ascend within 1 masks"):
        encode_ends(torch.tensor(ends), 1, 6, 6)


def test_corners_of_another_number_of_masks_are_refused():
    with pytest.raises(ValueError, match="corners"):
        encode_windows(torch.ones(1, 2, 2) > 0, torch.zeros(2, 2).long(), 6, 6)
