"""YOLACT's anchors and their targets, on hand-made cases and against slow references."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor
from torchvision.ops import box_convert

from instancezoo.yolact.targets import (
    AnchorSpec,
    MatchRules,
    assign_best_anchors,
    decode_boxes,
    encode_boxes,
    make_anchors,
    make_targets,
    match_anchors,
    paint_classes,
    resize_masks,
    split_crowds,
)

RULES = MatchRules(pos_iou=0.5, neg_iou=0.4, crowd_share=0.7)


def assign_one_by_one(ious: Tensor) -> list[int]:
    remaining, anchors = ious.clone(), [-1] * len(ious)
    for _ in range(len(ious)):
        row, column = divmod(int(remaining.argmax()), ious.shape[1])
        anchors[row] = column
        remaining[row] = remaining[:, column] = -1
    return anchors


def make_ground_truth(boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances((32, 48))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    masks = torch.zeros(len(boxes), 32, 48, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_is_crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return instances


def test_anchors_lie_on_cell_centres_scale_by_scale_ratio_by_ratio() -> None:
    spec = AnchorSpec(scales=[[8, 16], [32, 64]], aspect_ratios=[1.0, 0.25], square=False)
    anchors = make_anchors([(2, 3), (1, 1)], (20, 60), spec)
    assert anchors.shape == ((6 + 1) * spec.num_anchors, 4) and spec.num_anchors == 4
    assert anchors[:4].tolist() == [
        [10, 5, 8, 8], [10, 5, 4, 16], [10, 5, 16, 16], [10, 5, 8, 32],
    ]  # fmt: skip
    assert anchors[4 * 4][:2].tolist() == [30, 15]  # fifth cell: second row, second column
    assert anchors[-4].tolist() == [30, 10, 32, 32]


def test_square_anchors_are_as_high_as_wide() -> None:
    spec = AnchorSpec(scales=[[8]], aspect_ratios=[1.0, 0.25, 4.0], square=True)
    sizes = make_anchors([(1, 1)], (8, 8), spec)[:, 2:]
    assert sizes.tolist() == [[8, 8], [4, 4], [16, 16]]


def test_boxes_survive_encoding() -> None:
    torch.manual_seed(0)
    corners = torch.rand(50, 2) * 40
    boxes = torch.cat([corners, corners + 0.5 + torch.rand(50, 2) * 60], dim=1)
    anchors = torch.rand(50, 4) * 50 + 4
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes)
    # SSD's variances: a shift of a tenth of the anchor's width is one, e^0.2 times its size too
    one = decode_boxes(torch.ones(1, 4), torch.tensor([[50.0, 50, 20, 10]]))[0]
    width = 20 * torch.tensor(0.2).exp()
    assert one[2] - one[0] == pytest.approx(width.item())
    assert (one[0] + one[2]).item() / 2 == pytest.approx(52)


@pytest.mark.parametrize("seed", range(20))
def test_forced_pairs_are_those_of_the_one_by_one_rule(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, anchors = 1 + seed % 7, 7 + 3 * seed
    ious = torch.rand(count, anchors, generator=generator)
    if seed % 3 == 0:
        ious = (ious * 4).floor() / 4  # many ties
    if seed % 4 == 0:
        ious[:] = ious[:1]  # all objects want the same anchors
    found = assign_best_anchors(ious).tolist()
    assert found == assign_one_by_one(ious)
    assert len(set(found)) == count


def test_more_objects_than_anchors_leave_some_without_one() -> None:
    ious = torch.tensor([[0.2, 0.3], [0.6, 0.1], [0.5, 0.9]])
    assert assign_best_anchors(ious).tolist() == [-1, 0, 1]
    corners = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 5, 5]])
    labels, objects = match_anchors(corners, boxes, torch.tensor([3, 4]), torch.zeros(0, 4), RULES)
    assert labels.tolist() == [5] and objects.tolist() == [1]


def test_labels_follow_the_two_thresholds_and_every_object_has_an_anchor() -> None:
    corners = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4.5], [0, 0, 10, 3], [30, 30, 34, 34]]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [33, 33, 40, 40]])
    labels, objects = match_anchors(corners, boxes, torch.tensor([6, 2]), torch.zeros(0, 4), RULES)
    assert labels.tolist() == [7, 7, -1, 0, 3]  # IoU 1, 0.9, 0.45, 0.3, and 1/64 but forced
    assert objects[[0, 1, 4]].tolist() == [0, 0, 1]


def test_crowds_make_background_neutral_and_leave_positives() -> None:
    corners = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 44, 10]])
    labels, _ = match_anchors(
        corners,
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.tensor([0]),
        torch.tensor([[0.0, 0, 32, 10]]),
        RULES,
    )
    assert labels.tolist() == [1, -1, 0]  # covered wholly; wholly; to a half
    labels, _ = match_anchors(
        corners, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), corners[1:2], RULES
    )
    assert labels.tolist() == [0, -1, 0]


def test_crowds_and_objects_without_area_are_no_objects() -> None:
    image = make_ground_truth([[0, 0, 8, 8], [4, 4, 4, 9], [8, 8, 20, 20]], [0, 1, 2])
    objects, crowds = split_crowds(image)
    assert objects.gt_classes.tolist() == [0, 2] and crowds.shape == (0, 4)
    image.gt_is_crowd = torch.tensor([False, False, True])
    objects, crowds = split_crowds(image)
    assert objects.gt_classes.tolist() == [0] and crowds.tolist() == [[8, 8, 20, 20]]


def test_targets_of_a_batch_with_an_empty_image() -> None:
    spec = AnchorSpec(scales=[[12], [24]], aspect_ratios=[1.0, 0.5, 2.0], square=False)
    anchors = make_anchors([(4, 6), (2, 3)], (32, 48), spec)
    images = [
        make_ground_truth([], []),
        make_ground_truth([[4, 4, 18, 16], [20, 2, 44, 30]], [2, 0]),
    ]
    targets = make_targets(
        images,
        anchors,
        RULES,
        padded_size=(32, 48),
        prototype_size=(16, 12),
        semantic_size=(8, 12),
        num_classes=3,
    )
    assert targets.labels.shape == (2, len(anchors)) and (targets.labels[0] == 0).all()
    assert set(targets.image.tolist()) == {1} and set(targets.instance.tolist()) == {0, 1}
    expected = images[1].gt_boxes.tensor[targets.instance]
    decoded = decode_boxes(targets.deltas, anchors[targets.anchor])
    torch.testing.assert_close(decoded, expected)
    own = targets.labels[targets.image, targets.anchor] - 1
    assert torch.equal(own, images[1].gt_classes[targets.instance])
    # Every positive anchor overlaps its object enough, or was forced: at most one an object
    corners = box_convert(anchors[targets.anchor], "cxcywh", "xyxy")
    ious = pairwise_iou(Boxes(corners), Boxes(expected)).diagonal()
    assert (ious < RULES.pos_iou).sum() <= 2
    assert targets.boxes[1].tolist() == [[1, 2, 4.5, 8], [5, 1, 11, 15]]
    assert targets.masks[1].shape == (2, 16, 12) and targets.masks[0].shape == (0, 16, 12)
    assert targets.semantic.shape == (2, 3, 8, 12)
    assert targets.semantic.any(dim=(2, 3)).tolist() == [[False] * 3, [True, False, True]]


def test_resized_masks_keep_cells_that_are_inside_by_over_a_half() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :] = True
    masks[1, 2:4, 2:4] = True
    small = resize_masks(masks, (8, 12), (4, 6))
    assert small[0].nonzero().tolist() == [list(p) for p in itertools.product((0, 1), range(4))]
    assert small[1].nonzero().tolist() == [[1, 1]]
    assert resize_masks(masks[:0], (8, 12), (4, 6)).shape == (0, 4, 6)


def test_painting_joins_objects_of_a_class() -> None:
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, 0], masks[1, :, 0], masks[2, 1, 2] = True, True, True
    painted = paint_classes(masks, torch.tensor([1, 1, 0]), 3)
    assert painted[1].tolist() == [[True, True, True], [True, False, False]]
    assert painted[0].nonzero().tolist() == [[1, 2]] and not painted[2].any()
