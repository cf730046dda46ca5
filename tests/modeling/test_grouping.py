"""What bottom-up methods share: painted objects, votes, and the way from segments to detections."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch import nn

from instancezoo.modeling.grouping import BottomUpSegmenter, GroupSettings, Segments, vote_classes
from instancezoo.modeling.object_maps import IGNORED, paint_objects


def _make_objects(size, boxes, classes, crowds=None):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    objects = Instances(size, gt_masks=BitMasks(masks), gt_classes=torch.tensor(classes).long())
    if crowds is not None:
        objects.gt_is_crowd = torch.tensor(crowds)
    return objects


def test_small_objects_lie_on_top_and_padding_is_ignored():
    objects = _make_objects((8, 10), [[0, 0, 3, 3], [0, 0, 10, 8], [2, 2, 4, 8]], [2, 0, 1])
    maps = paint_objects([objects], (10, 12), stride=1, num_classes=3)
    expected = torch.zeros(10, 12, dtype=torch.long)
    expected[:8, :10] = 2
    expected[2:8, 2:4] = 3  # 12 pixels, below the square of 9
    expected[:3, :3] = 1
    assert torch.equal(maps.ids[0], expected)
    colours = torch.tensor([IGNORED, 2, 0, 1])
    assert torch.equal(maps.classes[0], colours[expected])


def test_a_cell_is_painted_by_its_centre():
    size = (64, 64)
    masks = torch.rand(4, *size) > 0.5
    objects = Instances(size, gt_masks=BitMasks(masks), gt_classes=torch.arange(4))
    maps = paint_objects([objects], size, stride=4, num_classes=4)
    order = masks.flatten(1).sum(dim=1).argsort(descending=True, stable=True).tolist()
    for row in range(16):
        for column in range(16):
            covering = [i for i in order if masks[i, row * 4 + 2, column * 4 + 2]]
            assert maps.ids[0, row, column] == (covering[-1] + 1 if covering else 0)
            assert maps.classes[0, row, column] == (covering[-1] if covering else 4)
    corner = paint_objects([objects], size, stride=4, num_classes=4, offset=0)
    assert torch.equal(corner.ids[0] > 0, masks[:, ::4, ::4].any(dim=0))


def test_crowds_are_ignored_where_there_is_no_object():
    boxes = [[0, 0, 4, 4], [2, 2, 8, 8]]
    objects = _make_objects((8, 8), boxes, [1, 0], [False, True])
    maps = paint_objects([objects], (8, 8), stride=1, num_classes=2)
    assert maps.counts == (1,)
    assert (maps.ids[0] > 0).sum() == 16 and maps.classes[0, 3, 3] == 1
    assert maps.classes[0, 5, 5] == IGNORED and maps.classes[0, 7, 0] == 2


def test_cells_of_a_batch_are_counted_over_all_images():
    first = _make_objects((4, 4), [[0, 0, 1, 1], [3, 3, 3, 3]], [0, 0])  # the second is empty
    second = _make_objects((4, 4), [[1, 2, 3, 3]], [0])
    nothing = _make_objects((4, 4), [], [])
    maps = paint_objects([first, nothing, second], (4, 4), stride=1, num_classes=1)
    owner, image, y, x = maps.list_cells()
    assert owner.tolist() == [0, 2, 2] and image.tolist() == [0, 2, 2]
    assert y.tolist() == [0, 2, 2] and x.tolist() == [0, 1, 2]
    assert (maps.classes[1] == 1).all()


def test_votes_leave_the_background_out():
    probs = torch.tensor([[0.1, 0.3, 0.2, 0.05], [0.2, 0.1, 0.2, 0.05], [0.7, 0.6, 0.6, 0.9]])
    segments = Segments.from_labels(torch.tensor([[1, 1, 2, 0]]), torch.ones(2))
    classes, scores = vote_classes(probs[:, None], segments)
    assert classes.tolist() == [0, 0]  # a tie of votes, and one of probabilities: the lowest
    assert scores.tolist() == pytest.approx([0.2, 0.2])
    empty = Segments.from_labels(torch.zeros(1, 4, dtype=torch.long), torch.zeros(0))
    assert [len(part) for part in vote_classes(probs[:, None], empty)] == [0, 0]


def test_segments_may_overlap_in_votes():
    probs = torch.tensor([[0.9, 0.1], [0.0, 0.8], [0.1, 0.1]])[:, None]
    segments = Segments(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (1, 2), torch.ones(2))
    classes, scores = vote_classes(probs, segments)
    assert classes.tolist() == [0, 1] and scores.tolist() == pytest.approx([0.5, 0.8])


class Identity(nn.Module):
    """A backbone and a head in little: the image itself."""

    size_divisibility = 4
    padding_constraints: dict = {}

    def forward(self, features):
        return {"x": features} if isinstance(features, torch.Tensor) else features[0]


class Bright(BottomUpSegmenter[torch.Tensor, None]):
    """Every brightness of the first channel is a segment; the second is the class."""

    def group(self, maps, index, grid):
        labels = maps[index, 0, : grid[0], : grid[1]].round().long()
        return Segments.from_labels(labels, torch.linspace(1, 0.5, int(labels.max())))

    def predict_classes(self, maps, index, grid):
        ones = maps[index, 1, : grid[0], : grid[1]]
        return torch.stack([1 - ones, ones, torch.zeros_like(ones)])


def _build(**settings):
    identity = Identity()
    return Bright(
        backbone=identity,
        head=identity,
        in_features=["x"],
        pixel_mean=[0.0, 0.0],
        pixel_std=[1.0, 1.0],
        num_classes=2,
        stride=1,
        decode_settings=GroupSettings(**settings),
    ).eval()


def _make_image():
    image = torch.zeros(2, 6, 7)
    image[0, :3, :3], image[0, 4:, 4:] = 1, 2
    image[1, 4:] = 0.75
    return {"image": image}


def test_segments_become_detections():
    (output,) = _build()([_make_image()])
    found = output["instances"]
    assert found.image_size == (6, 7)
    assert found.scores.tolist() == pytest.approx([1.0, 0.5 * 0.75])
    assert found.pred_classes.tolist() == [0, 1]
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 3, 3], [4, 4, 7, 6]]
    assert found.pred_masks[1].nonzero().min(dim=0).values.tolist() == [4, 4]
    assert found.pred_masks.flatten(1).sum(dim=1).tolist() == [9, 6]


@pytest.mark.parametrize("settings", [{"score_thresh": 0.5}, {"max_per_image": 1}])
def test_weak_and_surplus_segments_are_left_out(settings):
    (output,) = _build(**settings)([_make_image()])
    assert output["instances"].pred_classes.tolist() == [0]


def test_masks_of_nearest_resize_stay_disjoint():
    image = _make_image() | {"height": 9, "width": 5}
    (output,) = _build(mask_resize="nearest")([image])
    masks = output["instances"].pred_masks
    assert masks.shape[1:] == (9, 5) and masks.sum(dim=0).max() == 1
