"""Groups of detections against a greedy search, and the merged scores and boxes."""

import pytest
import torch
from torchvision.ops import box_iou

from instancezoo.layers.copy_groups import group_detections


def _make_detections(seed, count=60, num_copies=3):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(6, 2, generator=generator) * 60
    corners = centers[torch.randint(6, (count,), generator=generator)]
    corners = corners + torch.rand(count, 2, generator=generator) * 8
    boxes = torch.cat([corners, corners + 20], dim=1)
    classes = torch.randint(2, (count,), generator=generator)
    return boxes, classes, torch.randint(num_copies, (count,), generator=generator)


def _group(boxes, classes, copies, num_copies=3, **options):
    def compute_ious(rows, columns):
        return box_iou(boxes[rows], boxes[columns])

    options = {"min_iou": 0.5, **options}
    return group_detections(compute_ious, classes, copies, num_copies=num_copies, **options)


def _find_leaders(boxes, classes, copies):
    """The leader of each detection, by a plain greedy search."""
    leaders, ious, found = [], box_iou(boxes, boxes), []
    for index in range(len(boxes)):
        rivals = [
            leader
            for leader in leaders
            if ious[leader, index] >= 0.5
            and classes[leader] == classes[index]
            and copies[leader] != copies[index]
        ]
        if not rivals:
            leaders.append(index)
        found.append(max(rivals, key=lambda leader: ious[leader, index]) if rivals else index)
    return leaders, found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_groups_are_those_of_a_greedy_search(seed, chunk_size):
    boxes, classes, copies = _make_detections(seed)
    groups = _group(boxes, classes, copies, chunk_size=chunk_size)
    leaders, found = _find_leaders(boxes, classes, copies)
    assert groups.leaders.tolist() == leaders
    members = {}  # the best one of each leader and copy
    for index, leader in enumerate(found):
        members.setdefault((leader, int(copies[index])), index)
    assert groups.members.tolist() == sorted(members.values())
    assert 1 < len(leaders) < len(members) < len(boxes)
    assert groups.leaders[groups.group].tolist() == [found[i] for i in groups.members.tolist()]


def test_a_chain_of_overlaps_is_settled_in_order():
    # Each box overlaps the next one: the second is no leader, so that the third is one.
    boxes = torch.tensor([[10.0 * i, 0, 10 * i + 40, 40] for i in range(8)])
    groups = _group(boxes, torch.zeros(8, dtype=torch.long), torch.arange(8), 8, min_iou=0.55)
    assert groups.leaders.tolist() == [0, 2, 4, 6]


def test_detections_of_one_copy_or_two_classes_stay_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    groups = _group(boxes, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), 2)
    assert groups.leaders.tolist() == groups.members.tolist() == [0, 1, 2]


def test_scores_count_absent_copies_and_boxes_do_not():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 12, 10], [50, 0, 60, 10]])
    scores = torch.tensor([0.75, 0.25, 0.4])
    groups = _group(boxes, torch.zeros(3, dtype=torch.long), torch.tensor([1, 0, 1]), 2)
    torch.testing.assert_close(groups.merge_scores(scores), torch.tensor([0.625, 0.3]))
    expected = torch.tensor([[0, 0, 10.5, 10], [50, 0, 60, 10]])
    torch.testing.assert_close(groups.average_boxes(boxes, scores), expected)


def test_without_detections_there_are_no_groups():
    none = torch.zeros(0, dtype=torch.long)
    groups = _group(torch.zeros(0, 4), none, none)
    assert groups.merge_scores(torch.zeros(0)).shape == (0,)
    assert groups.average_boxes(torch.zeros(0, 4), torch.zeros(0)).shape == (0, 4)
