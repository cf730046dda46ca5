"""PolarMask's inference from hand-made maps, and against a reference that loops as specified."""

import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from instancezoo.modeling.masks import VertexMasks
from instancezoo.polarmask.decode import DecodeSettings, find_candidates, select_detections
from instancezoo.polarmask.head import PolarMaskOutputs

STRIDES, MAP_SIZES = [8, 16], [(12, 16), (6, 8)]
# The network sees 90 x 120 pixels, padded to 96 x 128, of an original of 45 x 200.
IMAGE, ORIGINAL = (90, 120), (45, 200)
NUM_CLASSES, NUM_RAYS = 3, 36


def _make_outputs(seed=0, num_images=1, with_boxes=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(channels, mean, std):
        return [
            mean + std * torch.randn(num_images, channels, *size, generator=generator)
            for size in MAP_SIZES
        ]

    return PolarMaskOutputs(
        cls_logits=draw(NUM_CLASSES, -3.0, 1.5),
        ctr_logits=draw(1, 0.0, 1.0),
        boxes=[values.exp() for values in draw(4, 2.5, 0.5)] if with_boxes else [],
        rays=[values.exp() for values in draw(NUM_RAYS, 2.5, 0.5)],
    )


def _detect(outputs, settings, original=ORIGINAL, image_sizes=(IMAGE,)):
    candidates = find_candidates(outputs, STRIDES, image_sizes, settings)
    return [select_detections(found, *original, settings) for found in candidates]


def _reference(outputs, settings, box_of="branch"):
    """Rows (score, class, box, polygon (R, 2)), best first."""
    rows = []
    limit = np.array([IMAGE[1] - 1, IMAGE[0] - 1], dtype=np.float64)
    scale = np.array([IMAGE[1] / ORIGINAL[1], IMAGE[0] / ORIGINAL[0]])
    for level, stride in enumerate(STRIDES):
        cells = []
        for y in range(MAP_SIZES[level][0]):
            for x in range(MAP_SIZES[level][1]):
                probs = 1 / (1 + np.exp(-outputs.cls_logits[level][0, :, y, x].double().numpy()))
                center = 1 / (1 + math.exp(-outputs.ctr_logits[level][0, 0, y, x].item()))
                cells.append((max(probs) * center, x, y, probs, center))
        cells.sort(key=lambda cell: -cell[0])
        for _, x, y, probs, center in cells[: settings.num_candidates]:
            point = np.array([x * stride + stride // 2, y * stride + stride // 2])
            rays = outputs.rays[level][0, :, y, x].double().numpy()
            angles = np.radians(np.arange(NUM_RAYS) * 10)
            polygon = point + rays[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
            polygon = polygon.clip(0, limit) / scale
            left, top, right, bottom = outputs.boxes[level][0, :, y, x].double().tolist()
            box = np.array([point - [left, top], point + [right, bottom]]).clip(0, limit) / scale
            if box_of == "polygon":
                box = np.array([polygon.min(axis=0), polygon.max(axis=0)])
            rows += [
                (prob * (center + settings.centerness_offset), label, box.ravel(), polygon)
                for label, prob in enumerate(probs)
                if prob > settings.score_thresh
            ]
    rows.sort(key=lambda row: -row[0])
    kept = []
    for row in rows:
        same = [other for other in kept if other[1] == row[1]]
        if all(_compute_iou(row[2], other[2]) <= settings.nms_thresh for other in same):
            kept.append(row)
    return kept[: settings.max_per_image]


def _compute_iou(one, other):
    """Of inclusive corners."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("box_of", ["branch", "polygon"])
@pytest.mark.parametrize("topk,most", [(1000, 100), (30, 100), (1000, 7)])
def test_detections_equal_the_loops(box_of, topk, most):
    settings = DecodeSettings(num_candidates=topk, nms_box=box_of, max_per_image=most)
    outputs = _make_outputs()
    (found,) = _detect(outputs, settings)
    expected = _reference(outputs, settings, box_of)
    assert len(found) == len(expected) > 5
    assert found.image_size == ORIGINAL
    scores, classes, boxes, polygons = (list(column) for column in zip(*expected, strict=True))
    assert found.pred_classes.tolist() == classes
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.pred_boxes.tensor, np.array(boxes), atol=1e-2)
    np.testing.assert_allclose(found.pred_masks.vertices, np.array(polygons), atol=1e-2)


def test_images_of_a_batch_are_independent():
    settings = DecodeSettings()
    outputs = _make_outputs(num_images=2)
    together = _detect(outputs, settings, image_sizes=(IMAGE, (80, 110)))
    for index, size in enumerate((IMAGE, (80, 110))):
        own = PolarMaskOutputs(*([m[index : index + 1] for m in maps] for maps in outputs))
        (alone,) = _detect(own, settings, image_sizes=(size,))
        assert torch.equal(alone.scores, together[index].scores)
        assert torch.equal(alone.pred_masks.vertices, together[index].pred_masks.vertices)


def test_vertices_end_at_the_image_not_at_the_padding():
    outputs = _make_outputs()
    far = outputs._replace(rays=[torch.full_like(rays, 500.0) for rays in outputs.rays])
    (found,) = find_candidates(far, STRIDES, [IMAGE], DecodeSettings())
    corners = found.pred_masks.vertices.amax(dim=(0, 1)).tolist()
    assert corners == [IMAGE[1] - 1, IMAGE[0] - 1]
    (kept,) = _detect(far, DecodeSettings(), original=IMAGE)
    assert kept.pred_masks.bitmasks(*IMAGE).all()


def _make_candidates(boxes, scores, classes=None):
    boxes = torch.tensor(boxes)
    x0, y0, x1, y1 = boxes.unbind(1)
    vertices = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=1).view(-1, 4, 2)
    return Instances(
        (100, 100),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.long) if classes is None else classes,
        pred_boxes=Boxes(boxes),
        pred_masks=VertexMasks(vertices),
    )


# 9 x 9 pixels that share 6 x 9 of 12 x 9: IoU 0.5; without the last pixels 5 x 8 of 11 x 8.
PAIR = [[10.0, 10, 18, 18], [13.0, 10, 21, 18]]


def test_nms_counts_pixels_of_the_original_image():
    candidates = _make_candidates(PAIR, [0.9, 0.8])
    keep = {
        plus_one: len(
            select_detections(
                candidates, 100, 100, DecodeSettings(nms_thresh=0.48, plus_one=plus_one)
            )
        )
        for plus_one in (True, False)
    }
    assert keep == {True: 1, False: 2}
    # Ten times larger a pixel hardly counts: the IoU falls to 0.459.
    settings = DecodeSettings(nms_thresh=0.48)
    assert len(select_detections(candidates, 1000, 1000, settings)) == 2


def test_classes_do_not_suppress_each_other():
    candidates = _make_candidates(PAIR[:1] * 2, [0.9, 0.8], torch.tensor([0, 1]))
    assert len(select_detections(candidates, 100, 100, DecodeSettings())) == 2


def test_boxes_can_be_handed_out_in_detectron2s_frame():
    candidates = _make_candidates(PAIR[:1], [0.9])
    frames = [
        select_detections(candidates, 200, 100, DecodeSettings(output_plus_one=plus_one))
        for plus_one in (False, True)
    ]
    boxes = [found.pred_boxes.tensor[0].tolist() for found in frames]
    assert boxes == [[10, 20, 18, 36], [10, 20, 19, 37]]
    assert all(found.pred_masks.vertices[0, 2].tolist() == [18, 36] for found in frames)


def test_the_threshold_is_on_the_probability_and_scores_may_exceed_one():
    def fill(value, channels):
        return [torch.full((1, channels, *size), value) for size in MAP_SIZES]

    outputs = PolarMaskOutputs(fill(8.0, 1), fill(9.0, 1), fill(5.0, 4), fill(5.0, 36))
    (found,) = _detect(outputs, DecodeSettings())
    assert 1.49 < found.scores.max() < 1.5
    outputs = outputs._replace(cls_logits=fill(math.log(0.06 / 0.94), 1), ctr_logits=fill(-9.0, 1))
    (found,) = _detect(outputs, DecodeSettings())
    assert len(found) > 0 and found.scores.tolist() == pytest.approx([0.03] * len(found), abs=1e-4)
    outputs = outputs._replace(cls_logits=fill(math.log(0.04 / 0.96), 1), ctr_logits=fill(9.0, 1))
    assert len(_detect(outputs, DecodeSettings())[0]) == 0


def test_without_a_box_branch_boxes_are_around_polygons():
    settings = DecodeSettings(nms_box="polygon")
    (found,) = _detect(_make_outputs(with_boxes=False), settings)
    vertices = found.pred_masks.vertices
    expected = torch.cat([vertices.amin(dim=1), vertices.amax(dim=1)], dim=1)
    assert torch.equal(found.pred_boxes.tensor, expected)


def test_infinite_distances_give_finite_shapes():
    outputs = _make_outputs()
    endless = [[torch.full_like(values, torch.inf) for values in maps] for maps in outputs[2:]]
    outputs = outputs._replace(boxes=endless[0], rays=endless[1])
    (found,) = _detect(outputs, DecodeSettings())
    assert found.pred_masks.vertices.isfinite().all()
    assert found.pred_boxes.tensor.isfinite().all()


def test_masks_are_filled_at_the_original_size():
    (found,) = _detect(_make_outputs(), DecodeSettings())
    masks = found.pred_masks.bitmasks(*ORIGINAL).numpy()
    for mask, polygon in zip(masks, found.pred_masks.vertices.numpy(), strict=True):
        expected = np.zeros(ORIGINAL, dtype=np.uint8)
        cv2.fillPoly(expected, [polygon.astype(np.int32)], 1)
        np.testing.assert_array_equal(mask, expected.astype(bool))


def test_nothing_above_the_threshold():
    outputs = _make_outputs(num_images=2)
    settings = DecodeSettings(score_thresh=2.0)
    for found in _detect(outputs, settings, image_sizes=(IMAGE, IMAGE)):
        assert len(found) == 0
        assert found.pred_boxes.tensor.shape == (0, 4)
        assert found.pred_masks.vertices.shape == (0, NUM_RAYS, 2)
        assert found.pred_masks.rle(*ORIGINAL) == []
