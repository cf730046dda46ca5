"""FCOS's targets and box overlaps on hand-made cases."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from instancezoo.fcos.losses import BOX_LOSSES, compare_distances, compute_box_loss
from instancezoo.fcos.targets import (
    assign_targets,
    compute_centerness,
    find_centers,
)
from instancezoo.modeling.point_assignment import PointSpec

NUM_CLASSES = 5
SPEC = PointSpec(strides=[8, 16], sizes_of_interest=[32])
MAP_SIZES = [(8, 12), (4, 6)]  # of an image of 64 x 96 pixels
NUM_POINTS = 8 * 12 + 4 * 6


def _make_image(boxes, classes, masks=None):
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    if masks is not None:
        instances.gt_bitmasks_full = masks
    return instances


def _assign(*images, spec=SPEC):
    return assign_targets(images, MAP_SIZES, spec, NUM_CLASSES)


def test_one_box():
    targets = _assign(_make_image([[16, 16, 40, 40]], [3]))
    # Points of the finest level within 12 pixels of the centre (28, 28): 20 and 28 and 36.
    expected = [row * 12 + column for row in (2, 3, 4) for column in (2, 3, 4)]
    first_level = targets.point[targets.point < 96]
    assert first_level.tolist() == expected
    # Of the coarser level 24 and 40 are within 24 pixels, but 40 is on the box's side, and all
    # distances are under 32.
    assert len(targets.point) == len(expected)
    assert targets.distances[0].tolist() == [4, 4, 20, 20]
    assert targets.distances[4].tolist() == [12, 12, 12, 12]
    assert targets.centerness[4] == 1
    assert targets.centerness[0].item() == pytest.approx(0.2)
    assert targets.classes.shape == (1, NUM_POINTS)
    assert (targets.classes[0, targets.point] == 3).all()
    assert (targets.classes == NUM_CLASSES).sum() == NUM_POINTS - len(expected)


def test_points_of_a_large_box_are_on_the_coarse_level():
    targets = _assign(_make_image([[0, 0, 64, 64]], [0]))
    assert (targets.point >= 96).all()  # the largest distance is at least 32
    assert (targets.strides == 16).all()
    pixels = targets.distances
    assert (pixels[:, 0] + pixels[:, 2] == 64).all() and (pixels[:, 1] + pixels[:, 3] == 64).all()
    assert targets.centerness.max() < 1  # (24, 24) and (40, 40) are beside the centre


def test_images_share_the_count_of_instances():
    first, empty = _make_image([[16, 16, 40, 40], [60, 8, 90, 38]], [1, 2]), _make_image([], [])
    targets = _assign(first, empty, _make_image([[16, 16, 40, 40]], [4]))
    assert set(targets.image.tolist()) == {0, 2}
    assert set(targets.instance[targets.image == 0].tolist()) == {0, 1}
    assert set(targets.instance[targets.image == 2].tolist()) == {2}
    assert (targets.classes[1] == NUM_CLASSES).all()
    assert set(targets.classes[2].tolist()) == {4, NUM_CLASSES}
    order = targets.image * NUM_POINTS + targets.point
    assert (order.diff() > 0).all()


def test_without_centre_sampling_all_points_in_the_box_are_positive():
    spec = PointSpec(SPEC.strides, SPEC.sizes_of_interest, radius=None)
    image = _make_image([[0, 0, 32, 32]], [0])
    assert len(_assign(image, spec=spec).point) == 16 and len(_assign(image).point) == 4


def test_centres_of_masks_take_the_place_of_box_centres():
    masks = torch.zeros(2, 64, 96)
    masks[0, 16:24, 16:24] = 1  # in a corner of its box; the second object has no pixel
    image = _make_image([[16, 16, 48, 48], [60, 30, 90, 60]], [0, 1], masks)
    assert find_centers(image).tolist() == [[19.5, 19.5], [0, 0]]
    targets = _assign(image)
    # Points 20 and 28 are within 12 pixels of 19.5, and inside the box.
    assert targets.point.tolist() == [2 * 12 + 2, 2 * 12 + 3, 3 * 12 + 2, 3 * 12 + 3]
    assert targets.distances[0].tolist() == [4, 4, 28, 28]  # still of the box


def test_centerness_is_the_papers():
    distances = torch.tensor([[1.0, 2, 4, 8], [3, 5, 3, 5], [1, 1, 100, 1]])
    expected = [(1 / 4 * 2 / 8) ** 0.5, 1, 0.1]
    torch.testing.assert_close(compute_centerness(distances), torch.tensor(expected))


def _compare_by_corners(predicted, target):
    """IoU with one added to both areas, and the share of the hull that neither box covers."""
    ones = predicted.new_tensor([-1, -1, 1, 1])
    a, b = predicted * ones, target * ones
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return (shared + 1) / (union + 1), (hull - union) / hull


def test_overlap_equals_that_of_corners():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand(2, 50, 4, generator=generator, dtype=torch.double) * 9 + 0.01
    overlap = compare_distances(predicted, target)
    iou, uncovered = _compare_by_corners(predicted, target)
    torch.testing.assert_close(overlap.iou, iou)
    torch.testing.assert_close(overlap.giou, iou - uncovered)
    torch.testing.assert_close(compute_box_loss(overlap, "giou"), 1 - iou + uncovered)
    torch.testing.assert_close(compute_box_loss(overlap, "iou"), -iou.log())
    torch.testing.assert_close(compute_box_loss(overlap, "linear_iou"), 1 - iou)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_box_loss_is_zero_where_boxes_are_equal_and_finite_where_they_vanish(kind):
    target = torch.tensor([[1.0, 2, 3, 4], [0.1, 0.1, 1e7, 1e7]])
    loss = compute_box_loss(compare_distances(target, target), kind)
    assert loss.tolist() == [0, 0]
    predicted = torch.zeros(2, 4, requires_grad=True)
    loss = compute_box_loss(compare_distances(predicted, target), kind)
    loss.sum().backward()
    assert (loss > 0).all() and torch.isfinite(loss).all()
    assert torch.isfinite(predicted.grad).all()


def test_unknown_box_loss_is_named():
    overlap = compare_distances(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="diou"):
        compute_box_loss(overlap, "diou")
