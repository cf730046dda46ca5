"""Box, point and Matrix NMS against references that follow the papers' formulas word by word."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from instancezoo.layers.nms import (
    count_intersections,
    greedy_mask_nms,
    matrix_nms,
    nms_per_class,
    pack_masks,
    point_nms,
    unpack_masks,
)


def _nms_by_definition(boxes, scores, classes, threshold):
    """Take the best box that is left, drop those of its class that overlap it; again."""
    left, kept = sorted(range(len(scores)), key=lambda i: -scores[i]), []
    while left:
        best = left.pop(0)
        kept.append(best)
        ious = box_iou(boxes[best][None], boxes)[0]
        left = [i for i in left if classes[i] != classes[best] or ious[i] <= threshold]
    return kept


# torchvision treats classes in one call or one by one, depending on the number of boxes.
@pytest.mark.parametrize("count", [0, 1, 60, 1200])
@pytest.mark.parametrize("shift", [0.0, -150.0, -5000.0])
def test_nms_per_class_is_greedy_within_each_class(count, shift):
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 90 + shift
    boxes = torch.cat([corners, corners + 60 * torch.rand(count, 2, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(0, 5, (count,), generator=generator)
    kept = nms_per_class(boxes, scores, classes, 0.4)
    assert kept.dtype == torch.long
    assert kept.tolist() == _nms_by_definition(boxes, scores, classes.tolist(), 0.4)
    assert count < 60 or len(kept) < count


def test_nms_per_class_keeps_classes_apart_at_negative_coordinates():
    # An offset of 100 + 1 a class would put the second box right upon the first.
    boxes = torch.tensor([[90.0, 0, 100, 10], [-11, -101, -1, -91]])
    kept = nms_per_class(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.5)
    assert kept.tolist() == [0, 1]


def _make_masks(num_masks, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num_masks, height, width, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, n, (), generator=generator)) for n in (height, width))
        mask[y // 2 : y + 3, x // 2 : x + 3] = True
    return masks


def _matrix_nms_by_formula(masks, scores, classes, kernel, sigma):
    count = len(scores)

    def iou(i, j):
        if classes[i] != classes[j]:
            return 0.0
        return float((masks[i] & masks[j]).sum()) / float((masks[i] | masks[j]).sum())

    decayed = []
    for j in range(count):
        factors = [1.0]
        for i in range(j):
            most = max((iou(k, i) for k in range(i)), default=0.0)
            if kernel == "gaussian":
                factors.append(math.exp(-sigma * iou(i, j) ** 2) / math.exp(-sigma * most**2))
            elif most < 1:
                factors.append((1 - iou(i, j)) / (1 - most))
        decayed.append(float(scores[j]) * min(factors))
    return torch.tensor(decayed)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("num_masks,height,width", [(1, 5, 9), (17, 12, 21), (30, 8, 16)])
def test_matrix_nms_equals_the_formula(kernel, num_masks, height, width):
    masks = _make_masks(num_masks, height, width, seed=num_masks)
    masks[num_masks // 2] = masks[0]  # an exact duplicate, if there is more than one
    scores = torch.rand(num_masks).sort(descending=True).values
    classes = torch.arange(num_masks) % 3 // 2
    found = matrix_nms(
        pack_masks(masks), masks.sum((1, 2)), scores, classes, kernel=kernel, sigma=2.0
    )
    expected = _matrix_nms_by_formula(masks, scores, classes, kernel, 2.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_of_three_duplicates_is_finite(kernel):
    masks = torch.ones(3, 4, 8, dtype=torch.bool)
    scores = torch.tensor([0.9, 0.8, 0.7])
    found = matrix_nms(
        pack_masks(masks), masks.sum((1, 2)), scores, torch.zeros(3).long(), kernel=kernel
    )
    duplicate = math.exp(-2.0) if kernel == "gaussian" else 0.0
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * duplicate, 0.7 * duplicate]))


def test_matrix_nms_leaves_other_classes_alone():
    masks = torch.ones(2, 4, 8, dtype=torch.bool)
    scores = torch.tensor([0.9, 0.8])
    packed, areas = pack_masks(masks), masks.sum((1, 2))
    assert torch.equal(matrix_nms(packed, areas, scores, torch.tensor([0, 1])), scores)


def test_matrix_nms_of_nothing():
    masks = torch.zeros(0, 4, 8, dtype=torch.bool)
    scores = torch.zeros(0)
    assert matrix_nms(pack_masks(masks), scores, scores, scores.long()).shape == (0,)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_of_empty_masks_leaves_their_scores(kernel):
    scores = torch.tensor([0.9, 0.8])
    packed = torch.zeros(2, 4, 1, dtype=torch.uint8)
    classes, areas = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    assert torch.equal(matrix_nms(packed, areas, scores, classes, kernel=kernel), scores)


def test_matrix_nms_refuses_an_unknown_kernel():
    masks = torch.ones(1, 4, 8, dtype=torch.bool)
    scores = torch.ones(1)
    with pytest.raises(ValueError, match=r"'gaussian'.*'linear'"):
        matrix_nms(pack_masks(masks), scores, scores, scores.long(), kernel="gauss")


def test_matrix_nms_under_autocast_counts_exactly():
    # bf16 holds integers only up to 256.
    masks = torch.ones(2, 50, 80, dtype=torch.bool)
    masks[1, 0, 0] = False
    args = pack_masks(masks), masks.sum((1, 2)), torch.tensor([0.9, 0.8]), torch.zeros(2).long()
    expected = matrix_nms(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matrix_nms(*args), expected)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 1, 1), (3, 6, 8), (5, 7, 13)])
def test_packing_keeps_every_pixel(shape):
    masks = torch.rand(shape) > 0.5
    packed = pack_masks(masks)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape[:2], -(-shape[2] // 8))
    unpacked = unpack_masks(packed)
    assert torch.equal(unpacked[..., : shape[2]], masks)
    assert not unpacked[..., shape[2] :].any()


def test_packing_takes_non_contiguous_masks():
    masks = (torch.rand(4, 16, 6) > 0.5).transpose(1, 2)
    assert torch.equal(unpack_masks(pack_masks(masks)), masks)


@pytest.mark.parametrize("budget", [1, 3000, 2**20])
def test_intersections_do_not_depend_on_the_budget(budget):
    masks = _make_masks(12, 20, 19, seed=3)
    flat = masks.flatten(1).float()
    assert torch.equal(count_intersections(pack_masks(masks), budget), flat @ flat.T)


def test_point_nms_looks_up_and_left_only():
    heat = torch.rand(2, 3, 5, 6)
    heat[0, 0, 2, 2] = heat[0, 0, 2, 3] = 0.99  # a tie: both stay
    expected = heat.clone()
    for n, k, y, x in torch.cartesian_prod(*(torch.arange(s) for s in heat.shape)).tolist():
        window = heat[n, k, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]
        if window.max() > heat[n, k, y, x]:
            expected[n, k, y, x] = 0
    found = point_nms(heat)
    assert torch.equal(found, expected)
    assert found[0, 0, 2, 3] == found[0, 0, 2, 2] > 0


@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_greedy_mask_nms_equals_a_loop(count, num_classes):
    masks = _make_masks(count, 17, 21, seed=4)
    if count > 4:
        masks[3] = False  # overlaps nothing
        masks[4] = masks[0]
    classes = torch.arange(count) % num_classes
    expected = []
    for i, mask in enumerate(masks):
        better = [masks[j] for j in expected if classes[i] == classes[j]]
        ious = [float((mask & m).sum() / (mask | m).sum().clamp(min=1)) for m in better]
        if all(iou <= 0.45 for iou in ious):
            expected.append(i)
    kept = greedy_mask_nms(pack_masks(masks), classes, 0.45)
    assert kept.tolist() == expected and kept.dtype == torch.long
    assert count < 30 or len(kept) < count
