"""SOLO's targets on hand-made cases, and against a reference that loops as the paper reads."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instancezoo.solo.targets import (
    GridSpec,
    assign_cells,
    gather_objects,
    reduce_as_opencv,
    reduce_by_center_pixels,
    reduce_masks,
)

NUM_CLASSES = 5
CANVAS = (64, 96)
GRID = GridSpec(num_grids=[12, 8, 5], scale_ranges=[[1, 24], [12, 40], [32, 200]])


def _make_image(boxes, classes, size=CANVAS):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    return instances


def _make_random_image(num_objects, seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, [CANVAS[1] - 3, CANVAS[0] - 3], (num_objects, 2))
    sizes = rng.integers(2, 60, (num_objects, 2))
    ends = np.minimum(corners + sizes, [CANVAS[1], CANVAS[0]])
    boxes = np.concatenate([corners, ends], axis=1).tolist()
    image = _make_image(boxes, rng.integers(0, NUM_CLASSES, num_objects).tolist())
    image.gt_masks.tensor &= torch.from_numpy(rng.random((num_objects, *CANVAS)) > 0.4)
    return image


def _assign(images, one_object_per_cell=False, grid=GRID, canvas=CANVAS):
    objects = gather_objects(images, canvas)
    grid = replace(grid, one_object_per_cell=one_object_per_cell)
    return assign_cells(objects, grid, num_classes=NUM_CLASSES)


def _list_rows(targets):
    columns = targets.image, targets.level, targets.cell, targets.instance
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _assign_by_loops(image, grid):
    """Rows (level, cell, object) and the class map, as spec section 3.2 reads."""
    rows, classes, first = [], [], 0
    for level, (side, (low, high)) in enumerate(
        zip(grid.num_grids, grid.scale_ranges, strict=True)
    ):
        category = np.full((side, side), NUM_CLASSES)
        for index in range(len(image)):
            x0, y0, x1, y1 = image.gt_boxes.tensor[index].tolist()
            mask = image.gt_masks.tensor[index].numpy()
            if not low <= np.sqrt(np.float32((x1 - x0) * (y1 - y0))) <= high or not mask.any():
                continue
            ys, xs = mask.nonzero()

            def cell(position, extent, side=side):
                return int(np.float32(position) / np.float32(extent) // np.float32(1 / side))

            spans = []
            for center, half, extent in (
                (ys.mean(), 0.1 * (y1 - y0), CANVAS[0]),
                (xs.mean(), 0.1 * (x1 - x0), CANVAS[1]),
            ):
                middle = cell(center, extent)
                start = max(0, cell(np.float32(center) - np.float32(half), extent), middle - 1)
                stop = min(side - 1, cell(np.float32(center) + np.float32(half), extent))
                spans.append(range(start, min(stop, middle + 1) + 1))
            for row in spans[0]:
                for column in spans[1]:
                    category[row, column] = int(image.gt_classes[index])
                    rows.append((level, first + row * side + column, index))
        classes.append(category.ravel())
        first += side * side
    return rows, np.concatenate(classes)


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_the_loops(seed):
    image = _make_random_image(num_objects=3 * seed, seed=seed)
    targets = _assign([image])
    rows, classes = _assign_by_loops(image, GRID)
    assert [row[1:] for row in _list_rows(targets)] == rows
    assert targets.classes[0].tolist() == classes.tolist()
    assert targets.num_positive == (classes < NUM_CLASSES).sum()


def test_a_small_centered_object_takes_one_cell():
    # Its centre region (18.7, 11.3) - (21.3, 13.7) is in row 2, column 2 of the 12 x 12 grid.
    targets = _assign([_make_image([[14, 7, 27, 19]], [3])])
    assert _list_rows(targets) == [(0, 0, 2 * 12 + 2, 0), (0, 1, 144 + 1 * 8 + 1, 0)]
    assert targets.classes[0, 26] == 3 and targets.classes[0, 144 + 9] == 3


def test_limits_of_scale_ranges_belong_to_both_levels():
    levels = _assign([_make_image([[20, 20, 44, 44]], [0])]).level  # 24 px
    assert set(levels.tolist()) == {0, 1}


def test_large_objects_take_at_most_three_by_three_cells():
    grid = GridSpec([40], [[1, 2048]], center_fraction=0.9)
    targets = _assign([_make_image([[0, 0, 96, 64]], [1])], grid=grid)
    assert len(targets.cell) == 9


def test_the_last_object_takes_a_contested_cell():
    image = _make_image([[14, 6, 26, 18], [14, 6, 27, 19]], [3, 1])
    both = _assign([image], one_object_per_cell=False)
    last = _assign([image], one_object_per_cell=True)
    assert torch.equal(both.classes, last.classes)
    assert both.classes[0, 26] == 1
    assert (0, 0, 26, 0) in _list_rows(both) and (0, 0, 26, 1) in _list_rows(both)
    assert (0, 0, 26, 0) not in _list_rows(last) and (0, 0, 26, 1) in _list_rows(last)
    assert both.num_positive == last.num_positive == len(last.cell) < len(both.cell)


def test_objects_without_a_level_or_a_mask_take_no_cell():
    image = _make_image([[10, 10, 20, 20], [5, 5, 6, 6]], [0, 1])
    image.gt_masks.tensor[0] = False
    image.gt_boxes.tensor[1] = torch.tensor([0.0, 0.0, 1000.0, 1000.0])
    targets = _assign([image])
    assert len(targets.cell) == 0 and targets.num_positive == 0
    assert (targets.classes == NUM_CLASSES).all()


def test_a_batch_is_its_images_one_after_the_other():
    images = [_make_random_image(4, seed=7), _make_image([], []), _make_random_image(5, seed=8)]
    together = _assign(images)
    alone = [_assign([image]) for image in images]
    assert torch.equal(together.classes, torch.cat([one.classes for one in alone]))
    assert together.num_positive == sum(one.num_positive for one in alone)
    first = [0, 4, 4]  # index of each image's first object
    expected = sorted(
        (level, instance + first[n], n, cell)
        for n, one in enumerate(alone)
        for _, level, cell, instance in _list_rows(one)
    )
    found = [(level, instance, n, cell) for n, level, cell, instance in _list_rows(together)]
    assert found == expected


def test_the_grid_covers_the_padded_canvas():
    image = _make_image([[14, 7, 27, 19]], [3], size=(30, 40))
    small, large = _assign([image], canvas=(32, 64)), _assign([image], canvas=CANVAS)
    assert small.cell[0] == 4 * 12 + 3  # from 11.3 / (32 / 12) and 18.7 / (64 / 12)
    assert large.cell[0] == 2 * 12 + 2


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_central_pixels_equal_opencv_where_sizes_divide(stride):
    masks = torch.rand(6, 48, 80) > torch.linspace(0.2, 0.8, 6)[:, None, None]
    found = reduce_by_center_pixels(masks, stride)
    for mask, small in zip(masks, found, strict=True):
        size = (80 // stride, 48 // stride)
        expected = cv2.resize(mask.numpy().astype(np.uint8), size)
        np.testing.assert_array_equal(small.numpy(), expected.astype(bool))


@pytest.mark.parametrize("size", [(30, 41), (33, 64), (1, 1), (57, 95), (64, 90)])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_masks_reduce_as_if_they_were_padded(size, stride):
    mask = torch.rand(3, *size) > 0.4
    image = _make_image([[0, 0, 1, 1]] * 3, [0] * 3, size)
    image.gt_masks = BitMasks(mask)
    found = reduce_masks(gather_objects([_make_random_image(2, 1), image], CANVAS), stride)
    assert found.shape == (5, CANVAS[0] // stride, CANVAS[1] // stride)
    for index in range(3):
        padded = np.zeros(CANVAS, np.uint8)
        padded[: size[0], : size[1]] = mask[index].numpy()
        expected = cv2.resize(padded, (CANVAS[1] // stride, CANVAS[0] // stride))
        np.testing.assert_array_equal(found[2 + index].numpy(), expected.astype(bool))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stride", [4, 8])
def test_integer_arithmetic_equals_opencv_at_any_size(stride, seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(stride, 90, 2).tolist()
    masks = torch.from_numpy(rng.random((5, height, width)) > rng.random((5, 1, 1)))
    found = reduce_as_opencv(masks, stride)
    size = int(width / stride + 0.5), int(height / stride + 0.5)
    for mask, small in zip(masks, found, strict=True):
        expected = cv2.resize(mask.numpy().astype(np.uint8), size)
        np.testing.assert_array_equal(small.numpy(), expected.astype(bool))


def test_opencv_rule_reduces_each_image_without_its_padding():
    images = [_make_random_image(2, 1), _make_image([[3, 4, 29, 25]], [0], size=(30, 41))]
    small = reduce_masks(gather_objects(images, CANVAS, "opencv"), 4)
    assert small.shape == (3, 16, 24)
    expected = cv2.resize(images[1].gt_masks.tensor[0].numpy().astype(np.uint8), (10, 8))
    np.testing.assert_array_equal(small[2, :8, :10].numpy(), expected.astype(bool))
    assert not small[2, 8:].any() and not small[2, :, 10:].any()
    with pytest.raises(ValueError, match="cv2"):
        reduce_masks(gather_objects(images, CANVAS, "cv2"), 4)
