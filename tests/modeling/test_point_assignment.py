"""Points and instances: the windowed assignment against a loop over all pairs."""

import pytest
import torch

from instancezoo.modeling.levels import find_best, index_levels, locate_points
from instancezoo.modeling.objects import Objects
from instancezoo.modeling.point_assignment import (
    PointSpec,
    assign_points,
    boxes_from_distances,
)

STRIDES = [8, 16, 32]
LIMITS = [32, 64]
RANGES = [(-1, 32), (32, 64), (64, 1e8)]
SIZES = [(12, 16), (6, 8), (3, 4)]
NUM_POINTS = sum(height * width for height, width in SIZES)


def _assign(boxes, *, centers=None, image_index=None, num_images=1, radius=1.5, strides=STRIDES):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) * 0.5 if centers is None else torch.tensor(centers)
    if image_index is None:
        image_index = torch.zeros(len(boxes), dtype=torch.long)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return _find_winners(
        boxes, centers, areas, image_index, num_images, PointSpec(strides, LIMITS, radius)
    )


def _find_winners(boxes, centers, areas, image_index, num_images, spec):
    """(N, P) instance of each point, -1 for none: each instance is a class of its own."""
    objects = Objects(boxes, torch.arange(len(boxes)), image_index, [], num_images)
    found = assign_points(objects, centers, areas, spec, map_sizes=SIZES, num_classes=-1)
    assert torch.equal(found.classes[found.image, found.point], found.instance)
    return found.classes


def _assign_slowly(centers, boxes, areas, image_index, num_images, radius):
    """The rules word by word, one pair at a time."""
    result = []
    for image in range(num_images):
        for (height, width), stride, (lowest, highest) in zip(SIZES, STRIDES, RANGES, strict=True):
            for cell in range(height * width):
                x = cell % width * stride + stride // 2
                y = cell // width * stride + stride // 2
                winner, smallest = -1, float("inf")
                for index, (box, (cx, cy)) in enumerate(zip(boxes, centers, strict=True)):
                    left, top, right, bottom = box
                    reach = float("inf") if radius is None else radius * stride
                    inside = max(cx - reach, left) < x < min(cx + reach, right)
                    inside &= max(cy - reach, top) < y < min(cy + reach, bottom)
                    farthest = max(x - left, y - top, right - x, bottom - y)
                    inside &= lowest <= farthest <= highest
                    if inside and image_index[index] == image and areas[index] < smallest:
                        winner, smallest = index, areas[index]
                result.append(winner)
    return torch.tensor(result).view(num_images, -1)


def test_points_are_half_a_stride_into_their_cells():
    points = locate_points([(2, 3), (1, 2), (0, 3)], [8, 5, 8])
    finest = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert points.tolist() == [*finest, [2, 2], [7, 2]]  # rounded down
    assert points.dtype == torch.float32
    assert index_levels([(2, 3), (1, 2), (0, 3), (1, 1)]).tolist() == [0] * 6 + [1] * 2 + [3]


def test_positive_points_know_their_image_place_and_stride():
    # The last box is too large for the finest level.
    boxes = torch.tensor([[0.0, 0, 24, 24], [0, 0, 24, 24], [30, 30, 100, 100]])
    image, classes = torch.tensor([0, 2, 2]), torch.tensor([4, 5, 6])
    objects = Objects(boxes, classes, image, [], num_images=3)
    centers, areas = (boxes[:, :2] + boxes[:, 2:]) / 2, torch.ones(3)
    spec = PointSpec(STRIDES, LIMITS)
    found = assign_points(objects, centers, areas, spec, map_sizes=SIZES, num_classes=9)
    assert found.classes.shape == (3, NUM_POINTS) and (found.classes[1] == 9).all()
    assert torch.equal(found.classes[found.image, found.point], classes[found.instance])
    assert len(found.point) == (found.classes < 9).sum()
    assert torch.equal(found.image, image[found.instance])
    assert torch.equal(found.coordinates, locate_points(SIZES, STRIDES)[found.point])
    assert set(zip(found.instance.tolist(), found.strides.tolist(), strict=True)) == {
        (0, 8), (1, 8), (2, 16)
    }  # fmt: skip
    assert (found.distances > 0).all()
    assert torch.equal(
        boxes_from_distances(found.coordinates, found.distances), boxes[found.instance]
    )


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_the_best_of_each_group_and_the_first_of_equals(limit):
    generator = torch.Generator().manual_seed(limit)
    scores = torch.randint(0, 5, (60,), generator=generator) / 4
    groups = torch.randint(0, 6, (60,), generator=generator) * 2
    expected = [False] * 60
    for group in range(12):
        rows = [row for row in range(60) if groups[row] == group]
        for row in sorted(rows, key=lambda row: -scores[row].item())[:limit]:
            expected[row] = True
    assert find_best(scores, groups, limit).tolist() == expected
    assert find_best(scores[:0], groups[:0], limit).shape == (0,)


@pytest.mark.parametrize("radius", [1.5, 1.0, 0.3, 2.25, 40.0, None])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop_over_all_pairs(radius, seed):
    generator = torch.Generator().manual_seed(seed)
    # Quarters are exact in fp32, and half of the corners lie on points or range limits.
    corners = torch.randint(-40, 580, (30, 2, 2), generator=generator) / 4
    corners[::2] = (corners[::2] / 4).round() * 4
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[3:12, 2:] = boxes[3:12, :2] + 24.0  # equal areas
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    centers[::3] += torch.randint(-30, 30, (10, 2), generator=generator)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    image_index = torch.randint(0, 3, (30,), generator=generator)
    spec = PointSpec(STRIDES, LIMITS, radius)
    found = _find_winners(boxes, centers, areas, image_index, 3, spec)
    rows = (centers.tolist(), boxes.tolist(), areas.tolist(), image_index.tolist())
    expected = _assign_slowly(*rows, 3, radius)
    assert torch.equal(found, expected)
    assert (expected >= 0).any()


def test_ranges_are_open_at_both_ends_of_the_pyramid():
    assert PointSpec(STRIDES, LIMITS).size_ranges == RANGES


def test_window_and_box_are_open():
    # Points of the finest level: 4, 12, 20 ... The window around 16 of 1.5 strides is (4, 28).
    found = _assign([[0, 0, 32, 32]], centers=[[16.0, 16.0]])[0, : 12 * 16].view(12, 16)
    assert (found == 0).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    # Sides that touch the points 12 and 20 leave none between them.
    assert (_assign([[12, 12, 20, 20]]) == -1).all()


def test_both_ends_of_a_range_are_included():
    # A box around the point (32 + 16, 16) of stride 32, also a point of no other level.
    for reach, level in ((64.0, 2), (64.5, 2), (63.5, None)):
        found = _assign([[48 - reach, 0, 48 + 40, 40]], centers=[[48.0, 16.0]], radius=0.4)
        assert ((found[0, 192 + 48 :] == 0).any()) == (level == 2)
    # Exactly 32 from the point (12, 12): the first two levels both take the box.
    found = _assign([[0, 0, 44, 40]], centers=[[12.0, 12.0]], radius=0.6)
    assert found[0, 17] == 0
    found = _assign([[0, 0, 56, 40]], centers=[[24.0, 24.0]], radius=0.6)
    assert found[0, 192 + 8 + 1] == 0 and (found[0, :192] == 0).any()


def test_smallest_area_wins_and_the_first_of_equals():
    large, small = [0, 0, 40, 40], [4, 4, 36, 36]
    assert _assign([large, small]).max() == 1
    found = _assign([large, small])[0]
    assert (found == 1).any() and not (found[:192] == 0).any()
    assert set(_assign([small, small, small])[0].tolist()) == {-1, 0}


def test_areas_are_the_callers():
    boxes = torch.tensor([[0.0, 0, 30, 30], [0, 0, 30, 30]])
    centers, image_index = boxes[:, 2:] / 2, torch.zeros(2, dtype=torch.long)
    areas, spec = torch.tensor([2.0, 1.0]), PointSpec(STRIDES, LIMITS)
    found = _find_winners(boxes, centers, areas, image_index, 1, spec)
    assert set(found[0].tolist()) == {-1, 1}


def test_a_centre_at_zero_keeps_its_points():
    found = _assign([[-30, 0, 30, 30]])
    assert (found == 0).any()


def test_images_do_not_mix():
    boxes = [[0, 0, 30, 30], [40, 40, 70, 70]]
    found = _assign(boxes, image_index=torch.tensor([2, 0]), num_images=3)
    assert found.shape == (3, NUM_POINTS)
    assert set(found[0].tolist()) == {-1, 1}
    assert set(found[1].tolist()) == {-1}
    assert set(found[2].tolist()) == {-1, 0}


@pytest.mark.parametrize(
    "boxes",
    [[], [[5, 5, 5, 5]], [[500, 500, 600, 600]], [[-90, -90, -10, -10]], [[30, 30, 10, 10]]],
    ids=["none", "no_area", "beyond", "before", "reversed"],
)
@pytest.mark.parametrize("radius", [1.5, None])
def test_boxes_without_points_leave_background(boxes, radius):
    found = _assign(boxes, num_images=2, radius=radius)
    assert found.shape == (2, NUM_POINTS) and found.dtype == torch.long
    assert (found == -1).all()


def test_unequal_lists_are_refused():
    with pytest.raises(ValueError, match=r"\b3\b.*\b2\b"):
        _assign([[0, 0, 9, 9]], strides=[8, 16])
