"""Matching against loops over objects and boxes."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher

from instancezoo.modeling.matching import FloorMatcher, build_roi_matcher


def _match_slowly(iou, thresholds, labels, floor, rematch):
    num_objects, num_boxes = iou.shape
    matches, found = [], []
    for k in range(num_boxes):
        values = [iou[m, k].item() for m in range(num_objects)]
        best = max(values)
        matches.append(values.index(best))
        found.append(labels[sum(best >= threshold for threshold in thresholds)])
    for m in range(num_objects):
        best = iou[m].max().item()
        for k in range(num_boxes):
            if best >= floor and iou[m, k].item() == best:
                found[k] = 1
                matches[k] = m if rematch else matches[k]
    return matches, found


@pytest.mark.parametrize("rematch", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.25, 0.5])
def test_against_loops(floor, rematch):
    generator = torch.Generator().manual_seed(0)
    thresholds, labels = [0.25, 0.75], [0, -1, 1]
    matcher = FloorMatcher(thresholds, labels, floor=floor, rematch=rematch)
    for num_objects, num_boxes in [(1, 1), (3, 5), (6, 20), (20, 6)]:
        # Few values, exact in fp32, so that several boxes are equally good.
        iou = torch.randint(0, 8, (num_objects, num_boxes), generator=generator) / 8
        matches, found = matcher(iou)
        expected = _match_slowly(iou, thresholds, labels, floor, rematch)
        assert (matches.tolist(), found.tolist()) == expected


def test_without_a_floor_it_is_detectron2s_matcher():
    iou = torch.rand(4, 30, generator=torch.Generator().manual_seed(1))
    ours = FloorMatcher([0.3, 0.7], [0, -1, 1], floor=0.0, rematch=False)(iou)
    theirs = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(iou)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_without_objects_or_boxes(shape):
    matches, labels = build_roi_matcher(0.5, low_quality=True)(torch.zeros(shape))
    assert matches.tolist() == labels.tolist() == [0] * shape[1]


def test_a_box_goes_to_the_last_object_that_it_is_best_for():
    # Box 0 overlaps object 0 more, but is the best that object 1 has.
    iou = torch.tensor([[0.8, 0.9], [0.6, 0.1]])
    assert build_roi_matcher(0.5, low_quality=False)(iou)[0].tolist() == [0, 0]
    assert build_roi_matcher(0.5, low_quality=True)(iou)[0].tolist() == [1, 0]
    # Below the threshold, the floor of the second kind, nothing changes.
    matches, labels = build_roi_matcher(0.7, low_quality=True)(iou)
    assert (matches.tolist(), labels.tolist()) == ([0, 0], [1, 1])
