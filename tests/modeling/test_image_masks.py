"""`ImageMasks`: the official chain of resizes, both outputs alike, memory bounded."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.mask import encode, toBbox

from instancezoo.benchmark.peak_memory import PeakMemory
from instancezoo.layers.resize_chain import Crop, Resize
from instancezoo.modeling.masks import ImageMasks, boxes_from_masks, remove_padding

CHAINS = {
    "padded": remove_padding((36, 44), (33, 41)),
    "direct": [],
    "three": [Resize(20, 26), Crop(18, 25), Resize(40, 31), Crop(40, 30)],
}


def _make_scores(num_masks, height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_masks, 1, 3, 4, generator=generator)
    return F.interpolate(scores, size=(height, width), mode="bilinear")[:, 0]


def _make_discs(num_masks, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([height, width])
    y, x = torch.arange(height)[:, None], torch.arange(width)
    discs = []
    for _ in range(num_masks):
        center = torch.rand(2, generator=generator) * size
        radii = (torch.rand(2, generator=generator) * 0.4 + 0.05) * size
        distance = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2
        discs.append(((1 - distance.sqrt()) * radii.min()).sigmoid())
    return torch.stack(discs)


def _resize_by_steps(scores, steps, output):
    """The reference: one mask at a time, each step on its own."""
    masks = []
    for score in scores[:, None, None]:
        for step in [*steps, Resize(*output)]:
            if isinstance(step, Crop):
                score = score[:, :, : step.height, : step.width]
            else:
                size = (step.height, step.width)
                score = F.interpolate(score, size=size, mode="bilinear", align_corners=False)
        masks.append(score[0, 0])
    return torch.stack(masks) if masks else torch.zeros(0, *output)


def _assert_rle(codes, masks):
    for code, mask in zip(codes, masks.numpy(), strict=True):
        expected = encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code["size"] == list(mask.shape) and code["counts"] == expected["counts"].decode()


@pytest.mark.parametrize("num_masks", [0, 1, 5])
@pytest.mark.parametrize("output", [(33, 41), (70, 90), (20, 17), (1, 1), (300, 2), (2, 300)])
@pytest.mark.parametrize("budget", [1, 2**26])
@pytest.mark.parametrize("chain", CHAINS)
def test_both_outputs_equal_the_steps(num_masks, output, budget, chain):
    scores, steps = _make_scores(num_masks), CHAINS[chain]
    masks = ImageMasks(scores, steps, budget=budget)
    found = masks.bitmasks(*output)
    assert found.dtype == torch.bool and found.shape == (num_masks, *output)
    assert torch.equal(found, _resize_by_steps(scores, steps, output) > 0.5)
    _assert_rle(masks.rle(*output), found)


@pytest.mark.parametrize(
    "padded,image,output",
    [((256, 320), (250, 309), (480, 640)), ((256, 320), (200, 309), (123, 190))],
)
def test_larger_masks_equal_the_steps(padded, image, output):
    scores = _make_discs(12, padded[0] // 4, padded[1] // 4)
    scores[0], scores[1] = 1.0, 0.0
    scores[2, 4:-4, 4:-4] = 1.0
    steps = remove_padding(padded, image)
    found = ImageMasks(scores, steps).bitmasks(*output)
    assert torch.equal(found, _resize_by_steps(scores, steps, output) > 0.5)
    assert found[0].all() and not found[1].any()
    _assert_rle(ImageMasks(scores, steps).rle(*output), found)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("value", [0.5, 0.4, 0.0, 0.1])
def test_scores_on_the_threshold(value, inclusive):
    # whole planes, edges and single samples that meet it exactly
    scores = torch.full((4, 40, 50), value)
    scores[1, :, 25:] = value + 0.3
    scores[2, ::3, ::2] = value - 0.3
    scores[3] = torch.linspace(value - 0.5, value + 0.5, 41)[:40, None]
    steps = remove_padding((160, 200), (150, 190))
    masks = ImageMasks(scores, steps, value, inclusive=inclusive)
    resized = _resize_by_steps(scores, steps, (200, 300))
    expected = resized >= value if inclusive else resized > value
    assert torch.equal(masks.bitmasks(200, 300), expected)
    _assert_rle(masks.rle(200, 300), expected)


def test_logits_of_any_scale():
    logits = (_make_discs(6, 40, 50) - 0.5) * 1e4
    found = ImageMasks(logits, [], 0.0).bitmasks(170, 190)
    assert torch.equal(found, _resize_by_steps(logits, [], (170, 190)) > 0)


def test_what_is_not_a_number_is_no_foreground():
    scores = torch.ones(2, 12, 14)
    scores[0, 5, 6], scores[1, 3, 3] = torch.nan, torch.inf
    expected = _resize_by_steps(scores, [], (60, 80)) > 0.5
    assert torch.equal(ImageMasks(scores).bitmasks(60, 80), expected)


def test_half_precision_and_autocast_change_nothing():
    scores = _make_discs(4, 60, 80).half()
    expected = _resize_by_steps(scores.float(), [], (300, 410)) > 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ImageMasks(scores).bitmasks(300, 410), expected)
        _assert_rle(ImageMasks(scores).rle(7, 410), ImageMasks(scores).bitmasks(7, 410))


def test_masks_that_are_empty_or_full_everywhere():
    for value in (0.0, 1.0):
        masks = ImageMasks(torch.full((2, 9, 11), value))
        assert masks.bitmasks(33, 41).float().mean() == value
        _assert_rle(masks.rle(33, 41), masks.bitmasks(33, 41))


def test_rle_never_holds_full_size_masks():
    masks = ImageMasks(
        _make_discs(20, 50, 60), remove_padding((200, 240), (200, 240)), budget=2**22
    )
    with PeakMemory() as memory:
        masks.rle(1500, 1800)
    assert (
        memory.peak < 20 * 1500 * 1800 / 2
    )  # bytes; full-size masks of one byte a pixel are twice


def test_index_cat_and_cast():
    scores = _make_scores(4)
    masks = ImageMasks(scores, CHAINS["padded"], 0.4, inclusive=True)
    assert len(masks[1]) == 1 and torch.equal(masks[-1].scores, scores[-1:])
    assert torch.equal(masks[torch.tensor([2, 0])].scores, scores[[2, 0]])
    joined = ImageMasks.cat([masks[:1], masks[1:]])
    assert torch.equal(joined.scores, scores)
    assert (joined.steps, joined.threshold, joined.inclusive) == (masks.steps, 0.4, True)
    assert masks.to(torch.float64).scores.dtype == torch.float64
    with pytest.raises(ValueError, match=r"\(M, h, w\)"):
        ImageMasks(scores[0])


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
