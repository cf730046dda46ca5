"""Selection of candidates and detections: order, cuts, thresholds, memory."""

import pytest
import torch

from instancezoo.benchmark.peak_memory import PeakMemory
from instancezoo.layers.nms import unpack_masks
from instancezoo.solo.decode import (
    DecodeSettings,
    compute_cell_probs,
    rank_candidates,
    select_detections,
)

MEGABYTE = 2**20


class Discs:
    """Masks of one image: a disc per cell."""

    def __init__(self, num_cells, height, width, radius, seed=0):
        generator = torch.Generator().manual_seed(seed)
        sizes = height, width
        self.y0, self.x0 = (torch.rand(num_cells, 1, 1, generator=generator) * n for n in sizes)
        self.y, self.x = torch.arange(height)[:, None], torch.arange(width)[None]
        self.radius = radius

    def probs(self, image, cells):
        assert image == 0
        distance = (self.y - self.y0[cells]) ** 2 + (self.x - self.x0[cells]) ** 2
        return distance.sub_(self.radius**2).div_(-self.radius).sigmoid_()


class FixedMasks:
    """Masks of one image, as they are given."""

    def __init__(self, masks):
        self.masks = masks

    def probs(self, image, cells):
        return self.masks[cells]


def test_cells_of_all_levels_come_in_one_order():
    logits = [torch.randn(2, 3, side, side) for side in (4, 2)]
    probs = compute_cell_probs(logits)
    assert probs.shape == (2, 16 + 4, 3)
    best = logits[1][1, :, 0, 0].sigmoid()  # an upper left corner has no better neighbour
    assert torch.equal(probs[1, 16], best)


def test_candidates_are_scored_by_probability_and_maskness():
    scene = Discs(6, 20, 24, radius=5)
    probs = torch.tensor([[0.9, 0.5], [0.1, 0.2], [0.0, 0.0], [0.8, 0.1], [0.3, 0.7], [0.05, 0.6]])
    ranked = rank_candidates(probs, torch.full((6,), 8), scene, 0, DecodeSettings(), budget=1)
    masks = scene.probs(0, torch.arange(6))
    expected = {}
    for cell, class_ in (probs > 0.1).nonzero().tolist():
        inside = masks[cell] > 0.5
        expected[cell, class_] = float(probs[cell, class_] * masks[cell][inside].mean())
    found = list(zip(ranked.cells.tolist(), ranked.classes.tolist(), strict=True))
    assert found == sorted(expected, key=expected.__getitem__, reverse=True)
    assert ranked.scores.tolist() == pytest.approx(sorted(expected.values(), reverse=True))
    unpacked = unpack_masks(ranked.packed_masks)
    assert torch.equal(unpacked, masks[ranked.cells] > 0.5)
    assert torch.equal(ranked.areas, unpacked.sum((1, 2)))


def test_masks_need_more_pixels_than_their_stride():
    masks = torch.zeros(3, 4, 8)
    masks[0, :, :2] = masks[1, 0] = 1.0  # 8 pixels each
    masks[1, 1, 0] = 1.0  # and one more
    scene = FixedMasks(masks)
    probs = torch.tensor([[0.9], [0.8], [0.7]])
    ranked = rank_candidates(probs, torch.full((3,), 8), scene, 0, DecodeSettings())
    assert ranked.cells.tolist() == [1]


def test_cuts_before_and_after_suppression():
    settings = DecodeSettings(num_candidates=20, max_per_image=7, update_thresh=0.0)
    scene = Discs(50, 40, 48, radius=4)
    probs = torch.linspace(0.2, 0.9, 50)[:, None]
    ranked = rank_candidates(probs, torch.full((50,), 1), scene, 0, settings)
    assert len(ranked.cells) == 20
    scores, classes, masks = select_detections(ranked, scene, 0, settings)
    assert len(scores) == len(classes) == len(masks) == 7
    assert (scores.diff() <= 0).all()


def test_the_update_threshold_is_inclusive():
    scene = Discs(1, 20, 20, radius=6)
    probs = torch.tensor([[0.5]])
    score = rank_candidates(probs, torch.ones(1), scene, 0, DecodeSettings()).scores.item()
    for threshold, count in ((score, 1), (score + 1e-6, 0)):
        settings = DecodeSettings(update_thresh=threshold)
        ranked = rank_candidates(probs, torch.ones(1), scene, 0, settings)
        assert len(select_detections(ranked, scene, 0, settings)[0]) == count


def test_classes_of_one_cell_share_its_mask():
    scene = Discs(2, 20, 24, radius=6)
    probs = torch.tensor([[0.0, 0.0], [0.9, 0.8]])
    ranked = rank_candidates(probs, torch.ones(2), scene, 0, DecodeSettings())
    scores, classes, masks = select_detections(ranked, scene, 0, DecodeSettings())
    assert classes.tolist() == [0, 1] and torch.equal(masks[0], masks[1])


def test_nothing_above_the_threshold():
    scene = Discs(3, 20, 24, radius=6)
    ranked = rank_candidates(torch.zeros(3, 2), torch.ones(3), scene, 0, DecodeSettings())
    scores, classes, masks = select_detections(ranked, scene, 0, DecodeSettings())
    assert scores.shape == classes.shape == (0,) and masks.shape == (0, 20, 24)
    assert classes.dtype == torch.long


# 800 x 1333 pixels are padded to 800 x 1344, 4 megapixels are 2000 x 2000; masks are a quarter.
@pytest.mark.parametrize(
    "num_candidates,height,width,radius,limit",
    [(500, 200, 336, 60, 200), (2000, 500, 500, 12, 400)],
)
def test_memory_of_dense_scenes(num_candidates, height, width, radius, limit):
    scene = Discs(num_candidates, height, width, radius)
    probs = torch.linspace(0.2, 0.9, num_candidates)[:, None]
    settings = DecodeSettings(num_candidates=num_candidates)
    with PeakMemory() as memory:
        ranked = rank_candidates(probs, torch.ones(num_candidates), scene, 0, settings)
        assert len(ranked.cells) == num_candidates
        select_detections(ranked, scene, 0, settings)
    packed_masks = num_candidates * height * width // 8
    assert packed_masks < memory.peak < limit * MEGABYTE
