"""Region proposals and ROI heads with switches."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError
from instancezoo.modeling.adjustable import AdjustableRPN, pad_gt_masks
from instancezoo.modeling.box_transform import SymmetricBox2BoxTransform
from instancezoo.modeling.matching import FloorMatcher
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

TINY = "mask_rcnn/mask_rcnn_tiny"
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110]]
ADJUSTABLE = ["MODEL.PROPOSAL_GENERATOR.NAME", "AdjustableRPN"]
HEADS = ["MODEL.ROI_HEADS.NAME", "AdjustableROIHeads"]


def _build(*overrides):
    return build_seeded_model(get_tiny_config(TINY, list(overrides)))


def _make_losses(model):
    batch = [make_input(128, 128, BOXES), make_input(96, 128, [], seed=1)]
    torch.manual_seed(2)
    with EventStorage(), torch.no_grad():
        return model(batch)


def test_without_switches_the_model_is_detectron2s():
    ours, theirs = _make_losses(_build(*ADJUSTABLE, *HEADS)), _make_losses(_build())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_switches_reach_the_parts():
    model = _build(
        *(*ADJUSTABLE, *HEADS, "MODEL.RPN.SYMMETRIC_DELTA_CLAMP", True),
        *("MODEL.ROI_HEADS.SYMMETRIC_DELTA_CLAMP", True),
        *("MODEL.ROI_HEADS.LOW_QUALITY_MATCHES", True, "MODEL.RPN.LOW_QUALITY_FLOOR", 0.3),
    )
    generator, heads = model.proposal_generator, model.roi_heads
    for part in (generator, heads.box_predictor):
        assert type(part.box2box_transform) is SymmetricBox2BoxTransform
    assert generator.anchor_matcher.floor == 0.3 and not generator.anchor_matcher.rematch
    assert type(heads.proposal_matcher) is FloorMatcher
    assert heads.proposal_matcher.floor == 0.5 and heads.proposal_matcher.rematch
    assert type(_build(*HEADS).roi_heads.proposal_matcher) is Matcher


def test_losses_are_divided_by_the_anchors_that_were_sampled():
    size = "MODEL.RPN.BATCH_SIZE_PER_IMAGE"
    # With one image of objects and room for more anchors than there are, all labelled ones count.
    model = _build(*ADJUSTABLE, size, 10**6, "MODEL.RPN.NORMALIZE_BY_SAMPLES", True)
    plain = _build(*ADJUSTABLE, size, 10**6)
    sampled, asked = _make_losses(model), _make_losses(plain)
    features = model.backbone(torch.zeros(2, 3, 128, 128))
    anchors = model.proposal_generator.anchor_generator([features[f"p{i}"] for i in range(2, 7)])
    objects = [make_input(128, 128, own)["instances"] for own in (BOXES, [])]
    labels, _ = model.proposal_generator.label_and_sample_anchors(anchors, objects)
    factor = 2 * 10**6 / sum(int((own >= 0).sum()) for own in labels)
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close(sampled[name], asked[name] * factor)


def _label(anchors, objects, **switches):
    parts = {"in_features": [], "head": None, "anchor_generator": None, "box2box_transform": None}
    limits = {"pre_nms_topk": (1, 1), "post_nms_topk": (1, 1)}
    generator = AdjustableRPN(
        **(parts | limits | switches),
        anchor_matcher=FloorMatcher([0.3, 0.7], [0, -1, 1], floor=0.3, rematch=True),
        batch_size_per_image=100,
        positive_fraction=1.0,
        anchor_boundary_thresh=0,
    )
    instances = Instances((100, 100), gt_boxes=Boxes(objects))
    (labels,), (boxes,) = generator.label_and_sample_anchors([Boxes(anchors)], [instances])
    return labels.tolist(), boxes


def test_an_anchor_outside_the_image_takes_no_objects_place():
    objects = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    anchors = torch.tensor([[-1.0, 0.0, 39.0, 40.0], [0.0, 0.0, 30.0, 30.0], [50, 50, 90, 90.0]])
    assert _label(anchors, objects)[0] == [-1, -1, 0]
    labels, boxes = _label(anchors, objects, discard_before_matching=True)
    assert labels == [-1, 1, 0]
    assert torch.equal(boxes[1], objects[0])
    assert _label(anchors, torch.zeros(0, 4), discard_before_matching=True)[0] == [-1, 0, 0]
    outside = anchors[:1]
    assert _label(outside, objects, discard_before_matching=True)[0] == [-1]


def test_masks_are_padded_to_the_batch():
    box = torch.tensor([[60.0, 56.0, 100.0, 96.0]])
    objects = make_input(96, 100, [[60, 56, 100, 96]])["instances"]
    images = ImageList(torch.zeros(1, 3, 128, 128), [(96, 100)])
    (padded,) = pad_gt_masks([objects], images)
    assert padded.gt_masks.tensor.shape == (1, 128, 128)
    assert torch.equal(padded.gt_masks.tensor[:, :96, :100], objects.gt_masks.tensor)
    assert padded.gt_masks.tensor.sum() == objects.gt_masks.tensor.sum() == 1600
    assert objects.gt_masks.tensor.shape == (1, 96, 100)
    # Sampled 3/8 of a pixel outside of a corner, a mask is 25/64; without padding, there is no
    # outside at the two borders of the image, and it is 5/8 or 1.
    plain, other = (x.gt_masks.crop_and_resize(box, 160)[0] for x in (objects, padded))
    assert not plain[0, 0] and not other[0, 0]
    assert (plain != other).nonzero().tolist() == [[0, 159], [159, 0], [159, 159]]
    assert plain[159, 159]
    bare = Instances((96, 100), gt_boxes=objects.gt_boxes)
    assert not pad_gt_masks([bare], images)[0].has("gt_masks")


@pytest.mark.parametrize("padded", [True, False])
def test_padding_is_by_a_switch(padded, monkeypatch):
    model, seen = _build(*HEADS, "MODEL.ROI_HEADS.PAD_GT_MASKS", padded), []
    label = model.roi_heads.label_and_sample_proposals

    def keep(proposals, targets):
        seen.extend(objects.gt_masks.tensor.shape[1:] for objects in targets)
        return label(proposals, targets)

    monkeypatch.setattr(model.roi_heads, "label_and_sample_proposals", keep)
    _make_losses(model)
    assert seen == ([(128, 128)] * 2 if padded else [(128, 128), (96, 128)])


@pytest.mark.parametrize(
    "config,key",
    [
        ("panet/panet_tiny", "MODEL.ROI_HEADS.PAD_GT_MASKS"),
        ("cascade_mask_rcnn/cascade_mask_rcnn_tiny", "MODEL.ROI_HEADS.SYMMETRIC_DELTA_CLAMP"),
    ],
)
def test_a_switch_that_other_heads_do_not_read_is_refused(config, key):
    with pytest.raises(ConfigError, match=rf"{key} has no effect .* default, False, or"):
        build_seeded_model(get_tiny_config(config, [key, True]))


@pytest.mark.parametrize(
    "overrides,named",
    [
        ([*ADJUSTABLE, "MODEL.RPN.DISCARD_BEFORE_MATCHING", True], "BOUNDARY_THRESH is -1"),
        (["MODEL.RPN.NORMALIZE_BY_SAMPLES", True], "NORMALIZE_BY_SAMPLES.*AdjustableRPN"),
        (["MODEL.RPN.LOW_QUALITY_FLOOR", 0.3], "LOW_QUALITY_FLOOR.*AdjustableRPN"),
        (["MODEL.ROI_HEADS.LOW_QUALITY_MATCHES", True], "LOW_QUALITY_MATCHES.*AdjustableROIHeads"),
        (
            [*HEADS, "MODEL.ROI_HEADS.LOW_QUALITY_MATCHES", True]
            + ["MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.3, 0.5]]
            + ["MODEL.ROI_HEADS.IOU_LABELS", [0, -1, 1]],
            r"IOU_THRESHOLDS is \[0.3, 0.5\]",
        ),
    ],
)
def test_a_switch_without_effect_is_refused(overrides, named):
    with pytest.raises(ConfigError, match=named):
        _build(*overrides)
