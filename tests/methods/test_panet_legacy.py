"""PANet's legacy boxes: anchors, scaling, pasting, ties, and the model with all of them."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as coco_mask

from instancezoo.modeling.masks import MaskForm
from instancezoo.modeling.rcnn import BatchImages
from instancezoo.panet.legacy import (
    LegacyAnchorGenerator,
    clip_boxes,
    just_below,
    place_masks,
    resize_boxes,
    shift_targets,
    to_inclusive,
    widen_boxes,
)
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY, LEGACY = "panet/panet_tiny", "panet/panet_legacy_tiny"
# Detectron's anchors of each level: inclusive width and height for ratios 0.5, 1, 2.
ANCHORS = {
    4: [(48, 24), (32, 32), (24, 48)],
    8: [(88, 48), (64, 64), (48, 96)],
    16: [(184, 96), (128, 128), (88, 176)],
    32: [(360, 176), (256, 256), (184, 368)],
    64: [(728, 368), (512, 512), (360, 720)],
}


def _boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_anchors_are_detectrons():
    strides = list(ANCHORS)
    generator = LegacyAnchorGenerator(
        sizes=[[32], [64], [128], [256], [512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides
    )
    levels = generator([torch.zeros(1, 8, 2, 3)] * len(strides))
    for (stride, sizes), anchors in zip(ANCHORS.items(), levels, strict=True):
        inclusive = to_inclusive(anchors.tensor)
        first, last = inclusive.view(2, 3, 3, 2, 2).unbind(3)  # row, column, ratio
        cells = torch.tensor([[[x, y] for x in range(3)] for y in range(2)])
        center = (stride / 2 - 0.5 + stride * cells)[:, :, None].expand(2, 3, 3, 2)
        assert torch.equal((first + last) / 2, center)
        assert torch.equal(last - first + 1, torch.tensor(sizes).float().expand(2, 3, 3, 2))


def test_the_last_pixel_is_scaled():
    boxes = _boxes([0, 0, 100, 50], [10, 20, 31, 42])
    # inclusive (0, 0, 99, 49) and (10, 20, 30, 41), twice as wide and half as high
    expected = _boxes([0, 0, 198, 24.5], [20, 10, 60, 20.5])
    scaled = resize_boxes(boxes, (100, 120), (50, 240))
    assert torch.equal(to_inclusive(scaled), expected)
    torch.testing.assert_close(resize_boxes(scaled, (50, 240), (100, 120)), boxes)


def test_boxes_are_clipped_to_pixels():
    boxes = _boxes([-9, -8, -5, -2], [200, 100, 300, 150], [-3, 4, 500, 9], [5.5, 6, 7, 8])
    inclusive = to_inclusive(clip_boxes(boxes, (80, 120)))
    assert inclusive.tolist() == [[0, 0, 0, 0], [119, 79, 119, 79], [0, 4, 119, 8], [5.5, 6, 6, 7]]


@pytest.mark.parametrize("value", [0.5, 0.7, 1e-3])
def test_ties_are_above_the_number_before(value):
    tie = torch.tensor(value)
    assert tie > just_below(value)
    assert not torch.nextafter(tie, torch.tensor(0.0)) > just_below(value)


def test_targets_are_scaled_by_their_last_pixels():
    images = BatchImages(torch.zeros(1, 3, 64, 64), [(50, 60)], [{"height": 100, "width": 30}])
    gt = Instances((50, 60), gt_boxes=Boxes(_boxes([4, 3, 24, 13], [6, 5, 7, 5.25])))
    gt.gt_classes = torch.tensor([1, 2])
    before = copy.deepcopy(gt)
    (shifted,) = shift_targets(images, [gt])
    # In the original, the first is (2, 6, 12, 26), inclusive (2, 6, 11, 25); the second is half a
    # pixel wide and high there, which counts as one.
    originals = resize_boxes(shifted.gt_boxes.tensor, (50, 60), (100, 30))
    torch.testing.assert_close(originals, _boxes([2, 6, 12, 26], [3, 10, 4, 11]))
    assert torch.equal(gt.gt_boxes.tensor, before.gt_boxes.tensor)
    assert shifted.gt_classes.tolist() == [1, 2]


def test_narrow_boxes_become_a_pixel_wide():
    assert widen_boxes(_boxes([3, 4, 3.5, 9])).tolist() == [[3, 4, 4, 9]]
    assert widen_boxes(_boxes([3, 4, 2, 3])).tolist() == [[3, 4, 4, 5]]


def _paste_as_detectron(scores, inclusive, height, width):
    """One map: enlarge its box with its border, cut fractions off, resize, cut; 0 elsewhere."""
    side = scores.shape[0]
    x0, y0, x1, y1 = (np.float32(value) for value in inclusive.tolist())
    grown = np.float32((side + 2) / side)
    half_x, half_y = (x1 - x0) * np.float32(0.5) * grown, (y1 - y0) * np.float32(0.5) * grown
    center_x, center_y = (x1 + x0) * np.float32(0.5), (y1 + y0) * np.float32(0.5)
    x0, x1, y0, y1 = map(
        int, (center_x - half_x, center_x + half_x, center_y - half_y, center_y + half_y)
    )
    size = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    resized = cv2.resize(np.pad(scores.numpy(), 1), size, interpolation=cv2.INTER_LINEAR)
    result = np.zeros((height, width), dtype=resized.dtype)
    left, right = max(x0, 0), min(x1 + 1, width)
    top, bottom = max(y0, 0), min(y1 + 1, height)
    result[top:bottom, left:right] = resized[top - y0 : bottom - y0, left - x0 : right - x0]
    return result


def _make_scores_and_boxes(height, width):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(60, 28, 28, generator=generator)
    scores[::3] = (scores[::3] * 4 - 1).clamp(0, 1)  # many are 0 or 1
    scores[30:] = scores[30:].round()  # contours only
    first = torch.rand(60, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([first, first + 4 + torch.rand(60, 2, generator=generator) * 80], dim=1)
    boxes[:2] = _boxes([0, 0, 1, 1], [width - 1, 5, width, 6])  # a pixel each
    boxes[2] = torch.tensor([0.0, 0, width, height])
    return scores, clip_boxes(boxes, (height, width))


def test_masks_are_pasted_as_detectron_did():
    height, width = 110, 140
    scores, boxes = _make_scores_and_boxes(height, width)
    inclusive = to_inclusive(boxes)

    def paste(scores):
        maps = zip(scores, inclusive, strict=True)
        return np.stack([_paste_as_detectron(*pair, height, width) for pair in maps])

    expected, exact = paste(scores) > 0.5, paste(scores.double())
    assert expected.any(axis=(1, 2)).mean() > 0.9
    assert np.isclose(exact, 0.5, rtol=0, atol=1e-12).sum() > 50  # ties
    masks = place_masks(scores, boxes)
    found = masks.bitmasks(height, width).numpy()
    # All pixels but those that are above 0.5 by less than rounding; ties are none of them.
    unsure = (exact > 0.5 + 1e-12) & (exact < 0.5 + 3e-5)
    assert unsure.sum() < 1e-4 * exact.size
    np.testing.assert_array_equal(found | unsure, expected | unsure)
    decoded = coco_mask.decode(masks.rle(height, width)).astype(bool).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, found)


def test_a_score_of_half_is_outside():
    boxes = _boxes([10, 10, 38, 38])
    assert not place_masks(torch.full((1, 28, 28), 0.5), boxes).bitmasks(60, 60).any()
    assert place_masks(torch.full((1, 28, 28), 0.501), boxes).bitmasks(60, 60).any()


@pytest.fixture(scope="module")
def model():
    limits = ["TEST.DETECTIONS_PER_IMAGE", 12]
    return build_seeded_model(keep_everything(get_tiny_config(LEGACY, limits)))


def _predict(model, batch, mask_output="bitmask"):
    model.eval().mask_output = mask_output
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


@pytest.mark.parametrize("size", [(64, 50), (200, 170)])
def test_both_outputs_agree_and_lie_in_the_original(model, size):
    batch = [make_input(128, 100, [], seed=2), make_input(90, 128, [], seed=3)]
    batch[0].update(height=size[0], width=size[1])
    found, rle = _predict(model, batch), _predict(model, batch, "rle")
    for record, instances, other in zip(batch, found, rle, strict=True):
        height, width = record["height"], record["width"]
        assert instances.image_size == (height, width) and len(instances) == 12
        assert instances.pred_masks.shape == (12, height, width)
        boxes = instances.pred_boxes.tensor
        assert torch.equal(boxes, clip_boxes(boxes, (height, width)))
        decoded = coco_mask.decode(other.pred_masks).astype(bool).transpose(2, 0, 1)
        np.testing.assert_array_equal(decoded, instances.pred_masks.numpy())
    (alone,) = _predict(model, batch[:1])
    torch.testing.assert_close(alone.scores, found[0].scores, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_gives_the_same(model):
    record = {"image": make_input(64, 96, [])["image"]}
    adapter = TracingAdapter(model.eval(), [record])
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        found = adapter.outputs_schema(traced(record["image"]))[0]["instances"]
    (expected,) = _predict(model, [record])
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_raw_results_have_placed_masks(model):
    with torch.no_grad():
        (raw,) = model.eval().inference([make_input(96, 96, [])], do_postprocess=False)
    assert isinstance(raw.pred_masks, MaskForm) and len(raw.pred_masks) == len(raw) == 12


def test_nothing_found():
    cfg = get_tiny_config(LEGACY, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0])
    (found,) = _predict(build_seeded_model(cfg), [make_input(96, 96, [])])
    assert len(found) == 0 and found.pred_masks.shape == (0, 96, 96)


def test_boxes_alone():
    cfg = keep_everything(get_tiny_config(LEGACY, ["MODEL.MASK_ON", False]))
    model = build_seeded_model(cfg)
    (found,) = _predict(model, [make_input(96, 96, [])])
    assert len(found) > 0 and not found.has("pred_masks")
    with EventStorage():
        losses = model.train()([make_input(96, 96, [[8, 8, 60, 40]])])
    assert "loss_mask" not in losses and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    "boxes", [[], [[40, 40, 41, 41]], [[0, 0, 128, 96]], [[10, 12, 60, 70], [50, 40, 120, 90]]]
)
@pytest.mark.parametrize("factor", [0.5, 3])
def test_training_is_finite_and_reaches_every_parameter(model, boxes, factor):
    model = copy.deepcopy(model).train()
    record = make_input(96, 128, boxes)
    record.update(height=int(96 * factor), width=int(128 * factor))
    with EventStorage():
        losses = model([record])
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


class _OneProposal(torch.nn.Module):
    """Stands for an RPN that proposes the same boxes in every image."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = boxes

    def forward(self, images, features, gt_instances=None):
        fields = {"objectness_logits": torch.zeros(len(self.boxes))}
        return [
            Instances(size, proposal_boxes=Boxes(self.boxes), **fields)
            for size in images.image_sizes
        ], {}


@torch.no_grad()
def test_boxes_that_are_learnt_are_boxes_that_are_found(model):
    """Deltas that training asks for lead to the original's box in inference."""
    model = copy.deepcopy(model)
    record = make_input(96, 128, [[20, 16, 84, 72]])
    record.update(height=240, width=64)  # 2.5 times as high, half as wide
    images = model.eval().preprocess_image([record])
    targets = shift_targets(images, [record["instances"]])
    proposal = _boxes([24.0, 10, 90, 75])
    sampled = Instances((96, 128), proposal_boxes=Boxes(proposal), **targets[0].get_fields())
    (region,) = model.roi_heads._move_to_outputs(images, [sampled])
    predictor = model.roi_heads.box_predictor
    deltas = predictor.box2box_transform.get_deltas(
        region.proposal_boxes.tensor, region.gt_boxes.tensor
    )
    predictor.bbox_pred.weight.zero_()
    predictor.bbox_pred.bias.copy_(deltas[0].repeat(4))
    model.proposal_generator = _OneProposal(proposal)
    (found,) = _predict(model, [record])
    expected = _boxes([10, 40, 42, 180]).expand(4, 4)  # the object in the original
    torch.testing.assert_close(found.pred_boxes.tensor, expected)


@torch.no_grad()
@pytest.mark.parametrize("legacy,num_kept", [(False, 2), (True, 1)])
def test_an_iou_of_exactly_half_is_too_much(legacy, num_kept):
    cfg = get_tiny_config(LEGACY if legacy else TINY)
    model = build_seeded_model(keep_everything(cfg)).eval()
    predictor = model.roi_heads.box_predictor
    predictor.cls_score.weight.zero_()
    predictor.bbox_pred.weight.zero_()
    model.proposal_generator = _OneProposal(_boxes([10, 10, 50, 50], [10, 10, 50, 30]))
    (found,) = _predict(model, [make_input(96, 128, [])])
    assert (found.pred_classes == 0).sum() == num_kept


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
def test_proposals_reach_into_the_padding(legacy):
    all_anchors = ["MODEL.RPN.NMS_THRESH", 1.0]
    for key in ("PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TEST"):
        all_anchors += [f"MODEL.RPN.{key}", 10000]
    cfg = get_tiny_config(LEGACY if legacy else TINY, all_anchors)
    model = build_seeded_model(cfg).eval()
    images = BatchImages(torch.zeros(2, 3, 64, 96), [(40, 70), (64, 33)], [{}, {}])
    found, _ = model.proposal_generator(images, model.backbone(images.tensor))
    assert [x.image_size for x in found] == images.image_sizes
    for boxes, (height, width) in zip(found, images.image_sizes, strict=True):
        limit = [96, 64] if legacy else [width, height]
        assert boxes.proposal_boxes.tensor.amax(dim=0)[2:].tolist() == limit


def _label_as_detectron(image, objects):
    """Labels of inclusive anchors inside the image, one at a time; -1 for those outside."""
    boxes, labels, ious = [], [], []
    for stride, sizes in ANCHORS.items():
        for row in range(128 // stride):
            for column in range(128 // stride):
                y, x = (stride / 2 - 0.5 + stride * cell for cell in (row, column))
                for w, h in sizes:
                    boxes.append(
                        (x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2)
                    )
    for x0, y0, x1, y1 in boxes:
        inside = x0 >= 0 and y0 >= 0 and x1 < image and y1 < image
        row = []
        for gx0, gy0, gx1, gy1 in objects:
            w, h = min(x1, gx1) - max(x0, gx0) + 1, min(y1, gy1) - max(y0, gy0) + 1
            shared = max(w, 0) * max(h, 0)
            areas = (x1 - x0 + 1) * (y1 - y0 + 1) + (gx1 - gx0 + 1) * (gy1 - gy0 + 1)
            row.append(shared / (areas - shared) if inside else -1)
        ious.append(row)
        best = max(row)
        labels.append(-1 if not inside else 1 if best >= 0.7 else 0 if best < 0.3 else -1)
    for column in zip(*ious, strict=True):
        labels = [1 if v == max(column) else own for v, own in zip(column, labels, strict=True)]
    return labels


def test_anchors_are_labelled_as_detectron_did():
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]]
    cfg = get_tiny_config(LEGACY, [*sizes, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6])
    generator = build_seeded_model(cfg).proposal_generator
    maps = [torch.zeros(1, 8, 128 // stride, 128 // stride) for stride in ANCHORS]
    anchors = generator.anchor_generator(maps)
    # The anchor that overlaps the first most is outside; the last is an anchor.
    image, objects = 66, [[0, 0, 15, 15], [30, 28, 65, 65], [34, 2, 65, 33]]
    targets = Instances((image, image), gt_boxes=Boxes(_boxes(*objects) + _boxes([0, 0, 1, 1])))
    (labels,), (matched,) = generator.label_and_sample_anchors(anchors, [targets])
    expected = _label_as_detectron(image, objects)
    assert labels.tolist() == expected
    assert {-1, 0, 1} == set(expected)
    is_object = (matched[labels == 1][:, None] == targets.gt_boxes.tensor).all(dim=2)
    assert is_object.any(dim=1).all()
    # Without objects all anchors inside are labelled: of squares of 32 pixels 9 rows of 9.
    (labels,), _ = generator.label_and_sample_anchors(anchors, [targets[:0]])
    finest = labels[: 32 * 32 * 3].view(32, 32, 3)
    assert (finest[:, :, 1] == 0).sum() == 81
