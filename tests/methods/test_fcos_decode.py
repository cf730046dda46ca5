"""FCOS's detections against loops over images, levels and candidates."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from instancezoo.fcos.decode import DecodeSettings, detect
from instancezoo.fcos.head import FCOSOutputs

STRIDES = [8, 16, 32]
MAP_SIZES = [(6, 9), (3, 5), (2, 3)]
IMAGE_SIZES = [(44, 70), (48, 60)]
NUM_CLASSES = 4


def _make_outputs(seed=0, top=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(channels, spread, mean=0.0):
        shapes = [(len(IMAGE_SIZES), channels, *size) for size in MAP_SIZES]
        return [mean + spread * torch.randn(shape, generator=generator) for shape in shapes]

    distances = [maps.clamp(min=0) for maps in draw(4, 1.5, 1.0)]
    return FCOSOutputs(draw(NUM_CLASSES, 2), distances, draw(1, 1), draw(top, 1) if top else [], [])


def _detect_slowly(outputs, image, settings):
    """Each kept (score, class, box, location, level) of an image, best first."""
    candidates = []
    for level, stride in enumerate(STRIDES):
        rows, columns = MAP_SIZES[level]
        found = []
        for cell in range(rows * columns):
            y, x = divmod(cell, columns)
            quality = torch.sigmoid(outputs.quality_logits[level][image, 0, y, x]).item()
            for label in range(NUM_CLASSES):
                prob = torch.sigmoid(outputs.cls_logits[level][image, label, y, x]).item()
                compared = prob * quality if settings.thresh_with_quality else prob
                if compared > settings.score_thresh:
                    px, py = x * stride + stride // 2, y * stride + stride // 2
                    left, top, right, bottom = outputs.distances[level][image, :, y, x] * stride
                    box = [px - left, py - top, px + right, py + bottom]
                    score = math.sqrt(prob * quality)
                    found.append((score, label, torch.tensor(box), [px, py], level))
        candidates += sorted(found, key=lambda row: -row[0])[: settings.num_candidates]
    kept = []
    for row in sorted(candidates, key=lambda row: -row[0]):
        rivals = [other[2] for other in kept if other[1] == row[1]]
        ious = box_iou(row[2][None], torch.stack(rivals)) if rivals else torch.zeros(1)
        if not (ious > settings.nms_thresh).any():
            kept.append(row)
    return kept[: settings.max_per_image]


@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(),
        DecodeSettings(score_thresh=0.3, thresh_with_quality=True),
        DecodeSettings(num_candidates=7, nms_thresh=0.3),
        DecodeSettings(max_per_image=5),
        DecodeSettings(nms_thresh=1.0, num_candidates=10**6, max_per_image=10**6),
    ],
    ids=["published", "threshold_with_quality", "few_candidates", "few_detections", "everything"],
)
def test_equals_loops(settings):
    outputs = _make_outputs()
    found = detect(outputs, IMAGE_SIZES, STRIDES, settings)
    for image, instances in enumerate(found):
        expected = _detect_slowly(outputs, image, settings)
        assert instances.image_size == IMAGE_SIZES[image]
        assert len(instances) == len(expected) > 0
        scores, classes, boxes, locations, levels = zip(*expected, strict=True)
        torch.testing.assert_close(instances.scores, torch.tensor(scores))
        assert instances.pred_classes.tolist() == list(classes)
        torch.testing.assert_close(instances.pred_boxes.tensor, torch.stack(boxes))
        assert instances.locations.tolist() == list(locations)
        assert instances.fpn_levels.tolist() == list(levels)


def test_boxes_may_reach_beyond_the_image():
    boxes = detect(_make_outputs(), IMAGE_SIZES, STRIDES, DecodeSettings())[0].pred_boxes.tensor
    assert boxes.min() < 0 and (boxes[:, 2] > IMAGE_SIZES[0][1]).any()


def test_equal_scores_at_the_limit_all_stay():
    outputs = _make_outputs()
    for maps in (*outputs.cls_logits, *outputs.quality_logits):
        maps.zero_()
    settings = DecodeSettings(nms_thresh=1.0, max_per_image=3)
    (found, _) = detect(outputs, IMAGE_SIZES, STRIDES, settings)
    assert len(found) == NUM_CLASSES * sum(height * width for height, width in MAP_SIZES)
    assert (found.scores == 0.5).all()


def test_top_features_travel_with_their_points():
    outputs = _make_outputs(top=3)
    (found, _) = detect(outputs, IMAGE_SIZES, STRIDES, DecodeSettings())
    assert found.top_feat.shape == (len(found), 3)
    for index in range(0, len(found), 7):
        level = int(found.fpn_levels[index])
        x, y = (found.locations[index] // STRIDES[level]).long().tolist()
        assert torch.equal(found.top_feat[index], outputs.top_features[level][0, :, y, x])


def test_nothing_above_the_threshold_has_all_fields():
    found = detect(_make_outputs(top=3), IMAGE_SIZES, STRIDES, DecodeSettings(score_thresh=2.0))
    for instances in found:
        assert len(instances) == 0
        assert instances.pred_boxes.tensor.shape == (0, 4)
        assert instances.locations.shape == (0, 2) and instances.top_feat.shape == (0, 3)
        assert instances.scores.dtype == torch.float32
        assert instances.pred_classes.dtype == instances.fpn_levels.dtype == torch.int64


def test_nothing_in_one_image_only():
    outputs = _make_outputs()
    for logits in outputs.cls_logits:
        logits[0] = -20.0
    empty, other = detect(outputs, IMAGE_SIZES, STRIDES, DecodeSettings())
    assert len(empty) == 0 and len(other) > 0
