"""modeling/masks/box.py against Detectron2's paste and pycocotools' encode."""

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.layers.mask_ops import _do_paste_mask
from pycocotools import mask as coco_mask

from instancezoo.modeling.masks import BoxMasks, masks_for_output


def _random_case(count, grid, height, width, seed=0, smooth=False):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.random((count, grid, grid), dtype=np.float32))
    if smooth:
        scores = torch.nn.functional.avg_pool2d(scores, 5, 1, 2)
        scores = ((scores - 0.5) * 8).sigmoid()
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    extent = np.exp(rng.uniform(np.log(0.5), np.log(0.9 * max(height, width)), (count, 2))) / 2
    boxes = np.concatenate([centre - extent, centre + extent], axis=1)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    return scores, torch.from_numpy(boxes).float()


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.0])
@pytest.mark.parametrize(
    "grid,size", [(28, (120, 200)), (14, (333, 97)), (112, (480, 640)), (1, (9, 9))]
)
def test_equal_to_detectron2_to_the_byte(grid, size, threshold):
    scores, boxes = _random_case(60, grid, *size, seed=grid, smooth=grid == 112)
    expected = paste_masks_in_image(scores, boxes, size, threshold)
    masks = BoxMasks(scores, boxes, threshold)
    assert torch.equal(masks.bitmasks(*size), expected)
    codes = coco_mask.encode(np.asfortranarray(expected.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert masks.rle(*size) == [
        {"size": list(c["size"]), "counts": c["counts"].decode("ascii")} for c in codes
    ]


def test_small_budget_changes_nothing():
    scores, boxes = _random_case(40, 28, 150, 160, seed=3)
    whole = BoxMasks(scores, boxes).rle(150, 160)
    assert BoxMasks(scores, boxes, budget=1).rle(150, 160) == whole


def test_rectangular_grid_and_boxes_outside():
    scores = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[-20.0, -10.0, 10.0, 5.0], [35.0, 25.0, 80.0, 90.0]])
    pasted, _ = _do_paste_mask(scores[:, None], boxes, 30, 40, skip_empty=False)
    masks = BoxMasks(scores, boxes).bitmasks(30, 40)
    assert masks.any(dim=(1, 2)).all()
    assert torch.equal(masks, pasted >= 0.5)


def test_index_cat_and_none():
    scores, boxes = _random_case(6, 7, 40, 50)
    masks = BoxMasks(scores, boxes)
    full = masks.bitmasks(40, 50)
    assert torch.equal(masks[torch.tensor([4, 1])].bitmasks(40, 50), full[[4, 1]])
    assert torch.equal(masks[-1].bitmasks(40, 50), full[-1:])
    assert torch.equal(BoxMasks.cat([masks[:2], masks[2:]]).bitmasks(40, 50), full)
    assert torch.equal(masks[-2].bitmasks(40, 50), full[4:5])
    assert len(list(masks)) == 6  # a loop ends
    with pytest.raises(IndexError):
        masks[6]
    none = masks[:0]
    assert none.bitmasks(40, 50).shape == (0, 40, 50) and none.rle(40, 50) == []


def test_half_precision_scores_are_sampled_in_single():
    scores, boxes = _random_case(5, 28, 60, 60)
    expected = BoxMasks(scores.bfloat16().float(), boxes).bitmasks(60, 60)
    assert torch.equal(BoxMasks(scores.bfloat16(), boxes).bitmasks(60, 60), expected)


def test_unknown_output_is_named():
    with pytest.raises(ValueError, match="polygon"):
        masks_for_output(BoxMasks(torch.ones(1, 2, 2), torch.ones(1, 4)), 4, 4, "polygon")
