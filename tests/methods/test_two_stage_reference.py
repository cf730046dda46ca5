"""MMDetection's Mask R-CNN and Cascade Mask R-CNN against loops over anchors and boxes."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from two_stage_reference import Reference

from instancezoo import model_zoo
from instancezoo.testing import build_seeded_model, make_input

NUM_CLASSES = 5
SIZE = 120, 90
PADDED = 128, 96
# The third ends in the corner of the image, where padding matters.
OBJECTS = [[4, 6, 50, 64], [10, 8, 58, 70], [40, 62, 90, 120], [70, 5, 88, 25]]
CASCADE = {
    "stds": [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)],
    "thresholds": [0.5, 0.6, 0.7],
    "weights": [1.0, 0.5, 0.25],
    "betas": (1 / 9, 1.0),
}
PLAIN = {
    "stds": CASCADE["stds"][:1],
    "thresholds": [0.5],
    "weights": [1.0],
    "betas": (0.0, 0.0),
}
# Of weights that are almost zero after initialisation.
FACTORS = {"anchor_deltas": 30, "objectness_logits": 30, "bbox_pred": 60, "cls_score": 30}
CASES = {
    "mask_rcnn/mask_rcnn_R_50_FPN_1x_mmdet": PLAIN,
    "cascade_mask_rcnn/cascade_mask_rcnn_R_50_FPN_1x_mmdet": CASCADE,
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, narrow_model):
    """Our narrow model, the reference with its weights, and feature maps of an image."""
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *narrow_model]
    overrides += ["MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES, "TEST.DETECTIONS_PER_IMAGE", 20]
    overrides += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5, "MODEL.RPN.PRE_NMS_TOPK_TEST", 60]
    overrides += ["MODEL.RPN.POST_NMS_TOPK_TEST", 60, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**5]
    model = build_seeded_model(model_zoo.get_config(request.param, overrides), seed=3)
    with torch.no_grad():  # predictions that differ from box to box, some beyond the limits
        for name, parameter in model.named_parameters():
            factor = next((FACTORS[part] for part in FACTORS if f"{part}.weight" in name), 1)
            parameter.mul_(factor)
    model.eval()
    record = make_input(*SIZE, OBJECTS, seed=4)
    images = model.preprocess_image([record])
    features = _make_features(images.tensor.shape[2:])
    return model, Reference(model, **CASES[request.param]), record, images, features


def _make_features(size):
    """Maps of 16 channels, unequal from level to level."""
    generator, features = torch.Generator().manual_seed(6), {}
    for level in range(2, 6):
        shape = [1, 16, *(side // 2**level for side in size)]
        features[f"p{level}"] = torch.randn(shape, generator=generator)
    return {**features, "p6": features["p5"][:, :, ::2, ::2]}


def _list_maps(features):
    return [features[name] for name in ("p2", "p3", "p4", "p5", "p6")]


@torch.no_grad()
def test_proposals(pair):
    model, reference, _, images, features = pair
    ((found,), _) = model.proposal_generator(images, features, None)
    expected = reference.find_proposals(_list_maps(features), SIZE, 60)
    torch.testing.assert_close(found.proposal_boxes.tensor, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_losses_of_anchors(pair):
    model, reference, record, images, features = pair
    model.train()
    with EventStorage():
        _, losses = model.proposal_generator(images, features, [record["instances"]])
    model.eval()
    expected = reference.anchor_losses(_list_maps(features), torch.tensor(OBJECTS).float(), SIZE)
    assert expected[1] > 0
    for name, value in zip(("loss_rpn_cls", "loss_rpn_loc"), expected, strict=True):
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


def _make_proposals():
    generator = torch.Generator().manual_seed(5)
    objects = torch.tensor(OBJECTS).float().repeat(6, 1)
    near = objects + torch.randn(objects.shape, generator=generator) * 4
    corners = torch.rand(12, 2, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    far = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes = Boxes(torch.cat([near, far]))
    boxes.clip(SIZE)
    return boxes


@torch.no_grad()
def test_losses_of_boxes_and_masks(pair):
    model, reference, record, images, features = pair
    objects, boxes = record["instances"], _make_proposals()
    proposals = Instances(SIZE, proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))
    model.train()
    with EventStorage():
        _, losses = model.roi_heads(images, features, [proposals], [objects])
    model.eval()
    assert images.tensor.shape[2:] == PADDED
    masks = objects.gt_masks.tensor
    if reference.is_cascade:
        padded = torch.zeros(len(masks), *PADDED, dtype=torch.bool)
        padded[:, : SIZE[0], : SIZE[1]] = masks
        masks = padded
    expected = reference.stage_losses(
        *(_list_maps(features), boxes.tensor, objects.gt_boxes.tensor),
        *(objects.gt_classes, masks, SIZE),
    )
    for stage, parts in enumerate(expected):
        ending = f"_stage{stage}" if len(expected) > 1 else ""
        for name, value in zip(("cls", "box_reg", "mask"), parts, strict=True):
            got = losses[f"loss_{name}{ending}"]
            assert value > 0
            torch.testing.assert_close(got, value, rtol=2e-4, atol=1e-6, msg=f"{name} {stage}")


@torch.no_grad()
def test_detections(pair):
    model, reference, _, images, features = pair
    ((proposals,), _) = model.proposal_generator(images, features, None)
    ((found,), _) = model.roi_heads(images, features, [proposals], None)
    boxes = proposals.proposal_boxes.tensor
    expected = reference.detect(_list_maps(features), boxes, SIZE, 0.05, 20)
    assert len(found) == len(expected) > 5
    for k, (score, label, box, mask) in enumerate(expected):
        assert found.scores[k].item() == pytest.approx(score, rel=1e-4)
        assert found.pred_classes[k] == label
        torch.testing.assert_close(found.pred_boxes.tensor[k], box, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.pred_masks[k, 0], mask, rtol=1e-3, atol=1e-4)
