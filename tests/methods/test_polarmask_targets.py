"""PolarMask's targets on hand-made cases, and against a reference that loops as the paper reads."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instancezoo.layers.borders import find_borders
from instancezoo.layers.polar import MISSED
from instancezoo.modeling.point_assignment import PointSpec
from instancezoo.polarmask.losses import box_iou_loss, polar_iou_loss, weighted_mean
from instancezoo.polarmask.targets import (
    TargetRules,
    gather_objects,
    make_targets,
    polar_centerness,
)

NUM_CLASSES = 5
CANVAS = (128, 192)
RULES = TargetRules(PointSpec([8, 16, 32], [24, 48]))
MAP_SIZES = [(16, 24), (8, 12), (4, 6)]


def _make_image(masks, classes=None, boxes=None):
    """Ground truth of (M, H, W) bool masks; boxes are those of the masks, right edge exclusive."""
    masks = torch.as_tensor(np.asarray(masks))
    instances = Instances(tuple(masks.shape[1:]))
    bitmasks = BitMasks(masks)
    instances.gt_boxes = bitmasks.get_bounding_boxes() if boxes is None else Boxes(boxes)
    instances.gt_classes = torch.arange(len(masks)) % NUM_CLASSES if classes is None else classes
    instances.gt_masks = bitmasks
    return instances


def _draw_boxes(boxes, size=CANVAS):
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def _draw_blobs(num_objects, seed, size=CANVAS):
    """Wobbly blobs, some with a second part or a hole."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(num_objects):
        mask = np.zeros(size, dtype=np.uint8)
        center, radius = rng.uniform(0, size[::-1]), rng.uniform(4, 60)
        angles = np.linspace(0, 2 * np.pi, 50)
        reach = radius * rng.uniform(0.5, 1.2, 50)
        outline = center + np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [outline.astype(np.int32)], 1)
        if rng.random() < 0.4:
            cv2.circle(mask, (int(center[0]), int(center[1])), max(2, int(radius / 4)), 0, -1)
        masks.append(mask.astype(bool))
    kept = [mask for mask in masks if mask.sum() > 20]
    return np.stack(kept) if kept else np.zeros((0, *size), dtype=bool)


def _make(images, rules=RULES, map_sizes=MAP_SIZES):
    objects = gather_objects(images, rules.plus_one)
    return make_targets(objects, map_sizes, rules, num_classes=NUM_CLASSES)


def _reference(image, rules=RULES, map_sizes=MAP_SIZES):
    """Point -> (class, distances, rays), by loops over levels, cells, instances and rays."""
    contours = [_find_contour(mask) for mask in image.gt_masks.tensor.numpy()]
    boxes = image.gt_boxes.tensor.numpy() - [0, 0, 1, 1]
    found, position = {}, 0
    for (rows, columns), stride, (low, high) in zip(
        map_sizes, rules.points.strides, rules.points.size_ranges, strict=True
    ):
        for row in range(rows):
            for column in range(columns):
                x, y = column * stride + stride // 2, row * stride + stride // 2
                best = None
                for index, (x1, y1, x2, y2) in enumerate(boxes):
                    cx, cy = contours[index][1]
                    reach = 1.5 * stride
                    if not max(cx - reach, x1) < x < min(cx + reach, x2):
                        continue
                    if not max(cy - reach, y1) < y < min(cy + reach, y2):
                        continue
                    sides = (x - x1, y - y1, x2 - x, y2 - y)
                    area = (x2 - x1 + 1) * (y2 - y1 + 1)
                    if low <= max(sides) <= high and (best is None or area < best[0]):
                        best = area, index, sides
                if best is not None:
                    rays = _cast_rays((x, y), contours[best[1]][0])
                    found[position] = int(image.gt_classes[best[1]]), best[2], rays
                position += 1
    return found


def _find_contour(mask):
    """Points of the largest contour, and its truncated centroid."""
    traced, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    points = max(traced, key=cv2.contourArea)[:, 0].astype(np.float64)
    moments = cv2.moments(points[:, None].astype(np.int32))
    center = points.mean(axis=0)
    if moments["m00"]:
        center = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    return points, np.trunc(center)


def _cast_rays(point, contour):
    offsets = contour - point
    bins = np.floor(np.degrees(np.arctan2(offsets[:, 0], offsets[:, 1])) % 360).astype(int)
    table = {}
    for degree, length in zip(bins, np.hypot(*offsets.T), strict=True):
        table[degree] = max(table.get(degree, 0.0), length)
    rays = []
    for theta in range(0, 360, 10):
        near = (theta, theta + 1, theta - 1, theta + 2, theta - 2, theta + 3, theta - 3)
        rays.append(next((table[degree] for degree in near if degree in table), 1e-6))
    return rays


@pytest.mark.parametrize("seed", range(6))
def test_targets_equal_the_loops(seed):
    image = _make_image(_draw_blobs(2 * seed, seed))
    targets, expected = _make([image]), _reference(image)
    assert targets.point.tolist() == list(expected)
    labels = torch.full((1, 16 * 24 + 8 * 12 + 4 * 6), NUM_CLASSES)
    for position, (label, _, _) in expected.items():
        labels[0, position] = label
    assert torch.equal(targets.classes, labels)
    assert len(expected) > 0 or seed == 0
    boxes = np.array([sides for _, sides, _ in expected.values()]).reshape(-1, 4)
    np.testing.assert_allclose(targets.distances, boxes, atol=1e-4)
    rays = np.array([rays for _, _, rays in expected.values()]).reshape(-1, 36)
    np.testing.assert_allclose(targets.rays, rays, atol=1e-3)
    np.testing.assert_allclose(
        targets.centerness, np.sqrt(rays.min(axis=1) / rays.max(axis=1)) if len(rays) else [], 1e-4
    )


def test_a_square_from_its_middle():
    # Pixels 40..72 by 24..56 around the point (56, 40), row 2 and column 3 of stride 16.
    rules = replace(RULES, points=PointSpec([16], []))
    image = _make_image(_draw_boxes([[40, 24, 73, 57]]), torch.tensor([2]))
    targets = _make([image], rules, map_sizes=[(8, 12)])
    middle = targets.point.tolist().index(2 * 12 + 3)
    assert targets.classes[0, 2 * 12 + 3] == 2
    assert targets.distances[middle].tolist() == [16, 16, 16, 16]
    rays = targets.rays[middle]
    assert rays[[0, 9, 18, 27]].tolist() == [16, 16, 16, 16]  # down, right, up, left
    # 10.6 degrees: the pixel 3 to the right of straight down
    assert rays[1].item() == pytest.approx(math.hypot(3, 16))
    assert targets.centerness[middle].item() == pytest.approx(math.sqrt(16 / rays.max()))


def test_padding_holds_no_positive_and_changes_nothing():
    small = (90, 150)
    image = _make_image(_draw_blobs(5, 3, size=small))
    targets, expected = _make([image]), _reference(image)
    assert targets.point.tolist() == list(expected)
    rays = [rays for _, _, rays in expected.values()]
    np.testing.assert_allclose(targets.rays, rays, atol=1e-3)


def test_a_batch_is_its_images_one_after_the_other():
    sizes = [CANVAS, (64, 100), CANVAS, (100, 192)]
    images = [_make_image(_draw_blobs(n, n, size)) for n, size in enumerate(sizes, start=3)]
    images.insert(1, _make_image(np.zeros((0, 80, 90), dtype=bool)))
    together, alone = _make(images), [_make([image]) for image in images]
    assert torch.equal(together.classes, torch.cat([one.classes for one in alone]))
    assert torch.equal(together.point, torch.cat([one.point for one in alone]))
    counts = [int((together.image == i).sum()) for i in range(len(images))]
    assert counts == [len(one.point) for one in alone] and sum(counts) == len(together.image)
    for name in ("distances", "rays", "centerness"):
        joined = torch.cat([getattr(one, name) for one in alone])
        assert torch.equal(getattr(together, name), joined), name


@pytest.mark.parametrize("count", [1, 3])
def test_images_without_objects_are_background(count):
    targets = _make([_make_image(np.zeros((0, *CANVAS), dtype=bool))] * count)
    assert targets.classes.shape == (count, 504) and (targets.classes == NUM_CLASSES).all()
    assert targets.rays.shape == (0, 36) and targets.distances.shape == (0, 4)
    assert targets.centerness.shape == (0,)


def test_a_vanished_instance_takes_no_point_and_leaves_the_others_theirs():
    masks = _draw_boxes([[20, 20, 60, 60], [100, 40, 150, 90]])
    boxes = torch.tensor([[20.0, 20, 60, 60], [30, 30, 31, 31], [100, 40, 150, 90]])
    gone = np.concatenate([masks[:1], np.zeros_like(masks[:1]), masks[1:]])
    classes = torch.tensor([1, 2, 3])
    found = _make([_make_image(gone, classes, boxes)])
    expected = _make([_make_image(masks, classes[[0, 2]])])
    assert torch.equal(found.classes, expected.classes) and torch.equal(found.rays, expected.rays)
    assert set(found.classes.unique().tolist()) == {1, 3, NUM_CLASSES}


def test_borders_may_have_been_found_before():
    images = [_make_image(_draw_blobs(n, n)) for n in (4, 0, 5)]
    expected = _make(images)
    for image in images:
        image.gt_borders = find_borders(image.gt_masks.tensor)
        image.remove("gt_masks")
    found = _make(images)
    for name in ("classes", "image", "point", "distances", "rays", "centerness"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("box", [[40, 10, 41, 100], [20, 52, 130, 53], [44, 44, 45, 45]])
def test_objects_one_pixel_wide_hold_no_point(box):
    targets = _make([_make_image(_draw_boxes([box]))])
    assert len(targets.point) == 0 and (targets.classes == NUM_CLASSES).all()


def test_a_mass_centre_at_the_left_border_keeps_its_points():
    # The largest part is the image's first column; a second, small part widens the box.
    mask = _draw_boxes([[0, 20, 1, 60]])
    mask[0, 40:42, 20:22] = True
    targets = _make([_make_image(mask)])
    assert len(targets.point) > 0


def test_the_smaller_box_wins_and_the_first_of_equals():
    large, small = [10, 10, 70, 70], [20, 20, 60, 60]
    labels = _make([_make_image(_draw_boxes([large, small]), torch.tensor([1, 2]))]).classes
    assert (labels == 2).any()
    twins = _make([_make_image(_draw_boxes([small, small]), torch.tensor([3, 4]))]).classes
    assert set(twins.unique().tolist()) == {3, NUM_CLASSES}


def test_centres_of_mass_and_of_the_box():
    mask = _draw_boxes([[20, 20, 100, 40]])
    mask[0, 20:100, 20:40] = True  # an L: its box's centre is (59.5, 59.5), its own (47, 47)
    rules = replace(RULES, points=PointSpec([16], []))
    found = {
        center: _make([_make_image(mask)], replace(rules, center=center), map_sizes=[(8, 12)])
        for center in ("mass", "box")
    }
    expected = {"mass": (1, 2, 3), "box": (2, 3, 4)}  # points 24, 40, 56 and 40, 56, 72
    for center, cells in expected.items():
        positions = [12 * row + column for row in cells for column in cells]
        assert found[center].point.tolist() == positions


def test_without_a_radius_all_points_inside_the_box_count():
    rules = replace(RULES, points=PointSpec([8], [], radius=None))
    image = _make_image(_draw_boxes([[16, 16, 81, 65]]))
    positions = _make([image], rules, map_sizes=MAP_SIZES[:1]).point
    # x = 20, 28 ... 76 lie between 16 and 80, y = 20 ... 60 between 16 and 64
    assert len(positions) == 8 * 6


def test_boxes_are_first_and_last_pixel_or_detectron2s():
    image = _make_image(_draw_boxes([[16, 16, 57, 57]]))
    assert gather_objects([image], plus_one=True).boxes.tolist() == [[16, 16, 56, 56]]
    assert gather_objects([image], plus_one=False).boxes.tolist() == [[16, 16, 57, 57]]
    # The point (56, 40) of stride 16 is on the last column, not inside of it.
    rules = replace(RULES, points=PointSpec([16], []))
    for plus_one in (True, False):
        found = _make([image], replace(rules, plus_one=plus_one), map_sizes=[(8, 12)])
        assert (2 * 12 + 3 in found.point) is not plus_one


def test_inclusive_boxes_stay_within_the_image():
    boxes = torch.tensor([[-3.0, 5.0, 200.0, 129.0]])
    image = _make_image(np.ones((1, *CANVAS), dtype=bool), boxes=boxes)
    assert gather_objects([image], plus_one=True).boxes.tolist() == [[0, 5, 191, 127]]


def test_ray_rules():
    image = _make_image(_draw_blobs(6, 1))
    published = _make([image]).rays
    wrapped = _make([image], replace(RULES, ray_wrap=True)).rays
    assert torch.equal(published[:, 1:], wrapped[:, 1:])
    true = _make([image], replace(RULES, ray_targets="intersection")).rays
    assert true.shape == published.shape and not torch.equal(true, published)
    # Where a ray has both, they end within a few pixels of each other on most rays.
    both = (published > 1) & (true > 1)
    assert ((published - true)[both].abs() < 3).float().mean() > 0.9
    filled = _make([image], replace(RULES, fill_missed_rays=True)).rays
    assert (published <= MISSED).any() and (filled > MISSED).all()
    assert torch.equal(filled[published > MISSED], published[published > MISSED])


@pytest.mark.parametrize("num_rays", [18, 72])
def test_other_numbers_of_rays(num_rays):
    image = _make_image(_draw_boxes([[20, 20, 61, 61]]))
    rays = _make([image], replace(RULES, num_rays=num_rays)).rays
    common = _make([image]).rays
    assert rays.shape == (len(common), num_rays) and len(common) > 0
    assert torch.equal(rays[:, :: num_rays // 18], common[:, ::2])


def test_polar_centerness():
    rays = torch.tensor([[4.0, 9.0, 5.0], [3.0, 3.0, 3.0], [1e-6, 100.0, 2.0], [0.0, 0.0, 0.0]])
    assert polar_centerness(rays).tolist() == pytest.approx([2 / 3, 1, 1e-4, 0])


def test_polar_iou_loss():
    rays, targets = torch.tensor([[1.0, 4.0], [2.0, 2.0]]), torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    assert polar_iou_loss(rays, targets).tolist() == pytest.approx([math.log(6 / 3), 0])
    # One pixel at the point itself: nothing to share, and still a number.
    assert polar_iou_loss(rays[:1], torch.zeros(1, 2)).isfinite().all()


def test_box_iou_loss_counts_pixels():
    boxes, targets = torch.tensor([[4.0, 1, 4, 1]]), torch.tensor([[1.0, 1, 1, 4]])
    # 9 x 3 and 3 x 6 pixels share 3 x 3
    assert box_iou_loss(boxes, targets).item() == pytest.approx(-math.log(9 / (27 + 18 - 9)))
    # 8 x 2 and 2 x 5 share 2 x 2
    loss = box_iou_loss(boxes, targets, plus_one=False).item()
    assert loss == pytest.approx(-math.log(4 / (16 + 10 - 4)))


def test_weighted_mean_without_weight_is_zero_and_connected():
    for losses, weights in ((torch.zeros(0), torch.zeros(0)), (torch.ones(3), torch.zeros(3))):
        losses.requires_grad_()
        mean = weighted_mean(losses, weights)
        mean.backward()
        assert mean.item() == 0 and losses.grad is not None
    assert weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0])).item() == 2
