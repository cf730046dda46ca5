"""`ImageMasks`: the published chain of resizes, both outputs alike, memory bounded."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.mask import encode, toBbox

from instancezoo.modeling.image_masks import ImageMasks, boxes_from_masks


def _make_scores(num_masks, height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_masks, 1, 3, 4, generator=generator)
    return F.interpolate(scores, size=(height, width), mode="bilinear")[:, 0]


def _resize_by_steps(scores, padded, image, output):
    """The reference: one mask at a time, each step on its own."""
    masks = []
    for score in scores:
        large = F.interpolate(score[None, None], size=padded, mode="bilinear", align_corners=False)
        cut = large[:, :, : image[0], : image[1]]
        masks.append(F.interpolate(cut, size=output, mode="bilinear", align_corners=False)[0, 0])
    return torch.stack(masks) > 0.5 if masks else torch.zeros(0, *output, dtype=torch.bool)


@pytest.mark.parametrize("num_masks", [0, 1, 5])
@pytest.mark.parametrize("output", [(33, 41), (70, 90), (20, 17), (1, 1)])
@pytest.mark.parametrize("budget", [1, 2**26])
def test_both_outputs_equal_the_steps(num_masks, output, budget):
    scores = _make_scores(num_masks)
    masks = ImageMasks(scores, (36, 44), (33, 41), budget=budget)
    found = masks.bitmasks(*output)
    assert found.dtype == torch.bool and found.shape == (num_masks, *output)
    assert torch.equal(found, _resize_by_steps(scores, (36, 44), (33, 41), output))
    codes = masks.rle(*output)
    for code, mask in zip(codes, found.numpy(), strict=True):
        expected = encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code["size"] == list(output) and code["counts"] == expected["counts"].decode()


def test_without_a_padded_size_scores_are_resized_at_once():
    scores = _make_scores(3)
    expected = F.interpolate(scores[None], size=(20, 30), mode="bilinear")[0] > 0.4
    assert torch.equal(ImageMasks(scores, None, (9, 11), 0.4).bitmasks(20, 30), expected)


def test_index_cat_and_cast():
    scores = _make_scores(4)
    masks = ImageMasks(scores, (36, 44), (33, 41))
    assert len(masks[1]) == 1 and torch.equal(masks[-1].scores, scores[-1:])
    assert torch.equal(masks[torch.tensor([2, 0])].scores, scores[[2, 0]])
    assert torch.equal(ImageMasks.cat([masks[:1], masks[1:]]).scores, scores)
    assert masks.to(torch.float64).scores.dtype == torch.float64
    with pytest.raises(ValueError, match=r"\(N, h, w\)"):
        ImageMasks(scores[0], None, (9, 11))


@pytest.mark.parametrize("num_masks", [0, 6])
def test_boxes_are_tight_in_both_forms(num_masks):
    masks = torch.zeros(num_masks, 12, 17, dtype=torch.bool)
    for index in range(1, num_masks):  # the first one stays empty
        masks[index, index : 2 * index, 3 : 4 + index] = True
        masks[index, 0, 16] = index == 5
    codes = [
        {"size": [12, 17], "counts": encode(np.asfortranarray(m.numpy()))["counts"].decode()}
        for m in masks.to(torch.uint8)
    ]
    boxes = boxes_from_masks(masks)
    assert boxes.shape == (num_masks, 4) and boxes.dtype == torch.float32
    assert torch.equal(boxes, boxes_from_masks(codes))
    if num_masks:
        assert boxes[0].tolist() == [0, 0, 0, 0]
        assert boxes[2].tolist() == [3, 2, 6, 4]
        assert boxes[5].tolist() == [3, 0, 17, 10]
        x, y, w, h = toBbox(codes)[3]
        assert boxes[3].tolist() == [x, y, x + w, y + h]
