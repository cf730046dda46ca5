"""HTC's designs, mask heads and inference."""

from functools import partial

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError, ZooError
from instancezoo.htc.roi_heads import merge_scores
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY = "htc/htc_tiny"
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110]]
DESIGNS = {  # interleaved, information flow, semantic branch
    "htc/htc_cascade_tiny": (False, False, False),
    "htc/htc_interleaved_tiny": (True, False, False),
    "htc/htc_mask_flow_tiny": (True, True, False),
    TINY: (True, True, True),
}


def _build(name=TINY, *overrides):
    return build_seeded_model(get_tiny_config(name, list(overrides)))


@pytest.mark.parametrize("name", DESIGNS)
def test_the_four_designs_are_one_class_by_config(name):
    heads = _build(name).roi_heads
    interleaved, flow, semantics = DESIGNS[name]
    assert heads.design.interleaved == interleaved
    assert heads.design.mask_info_flow == flow
    assert (heads.semantic_head is not None) == semantics
    assert [hasattr(head, "conv_res") for head in heads.mask_head] == [False, flow, flow]


@pytest.mark.parametrize("interleaved", [True, False])
def test_masks_are_trained_on_boxes_before_or_after_the_stage(interleaved, monkeypatch):
    model = _build(TINY, "MODEL.HTC.INTERLEAVED", interleaved)
    heads, calls = model.roi_heads, []

    def keep(name, method, *args, **kwargs):
        result = method(*args, **kwargs)
        calls.append((name, args, result))
        return result

    for name in ("sample", "refine", "mask_losses"):
        monkeypatch.setattr(heads, name, partial(keep, name, getattr(heads, name)))
    with EventStorage():
        model([make_input(128, 128, BOXES)])
    order = ["sample", "refine", *["sample"] * interleaved, "mask_losses"]
    assert [name for name, *_ in calls] == order * 3
    size = len(order)
    for start in range(0, len(calls), size):
        own = calls[start : start + size]
        sampled = own[-2][2] if interleaved else own[0][2]  # the call before, or the stage's first
        if interleaved:
            assert own[-2][1][0] is own[1][2]  # of the refined boxes
        positives = own[-1][1][1]
        boxes = sampled[0].proposal_boxes[sampled[0].gt_classes < 4]
        assert torch.equal(positives[0].proposal_boxes.tensor, boxes.tensor) and len(boxes)


@pytest.mark.parametrize("padded", [True, False])
def test_masks_are_padded_by_a_switch(padded, monkeypatch):
    model, seen = _build(TINY, "MODEL.ROI_HEADS.PAD_GT_MASKS", padded), []
    losses = model.roi_heads.losses

    def keep(maps, proposals, targets):
        seen.extend(objects.gt_masks.tensor.shape[1:] for objects in targets)
        return losses(maps, proposals, targets)

    monkeypatch.setattr(model.roi_heads, "losses", keep)
    with EventStorage():
        model([make_input(128, 128, BOXES), make_input(96, 128, [])])
    assert seen == ([(128, 128)] * 2 if padded else [(128, 128), (96, 128)])


def _find_gradients(heads, stage):
    heads.zero_grad()
    features = {f"p{k}": torch.randn(1, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    objects = make_input(128, 128, BOXES)["instances"]
    positives = Instances((128, 128), proposal_boxes=objects.gt_boxes, **objects.get_fields())
    with EventStorage():
        losses = heads.mask_losses(heads.make_maps(features)[0], [positives], stage)
        losses["loss_mask"].backward()
    return [head.mask_fcn1.weight.grad for head in heads.mask_head]


@pytest.mark.parametrize("flow", [True, False])
def test_a_stage_trains_the_heads_before_it(flow):
    heads = _build(TINY, "MODEL.HTC.MASK_INFO_FLOW", flow).roi_heads
    for stage in range(3):
        reached = [grad is not None and grad.any() for grad in _find_gradients(heads, stage)]
        assert reached == [k == stage or (flow and k < stage) for k in range(3)]


def test_the_mask_of_the_class_is_that_of_all_classes():
    head = _build().roi_heads.mask_head[1].eval()
    hidden = torch.randn(6, 64, 14, 14)
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.predictor.bias)
    classes = torch.tensor([0, 3, 1, 1, 2, 0])
    features = torch.randn(6, 64, 14, 14)
    with torch.no_grad():
        own = head(features, None, classes)[1]
        every = head.layers(features)
        rows = torch.arange(6)
        torch.testing.assert_close(own[:, 0], every[rows, classes], rtol=1e-4, atol=1e-5)
        every = head.predictor(torch.relu(head.deconv(hidden)))  # (6, 4, 28, 28)
        own = head.predict(hidden, classes)
        assert head.predict(hidden[:0], classes[:0]).shape == (0, 1, 28, 28)
    torch.testing.assert_close(own[:, 0], every[torch.arange(6), classes], rtol=1e-4, atol=1e-5)


def test_masks_of_one_channel_serve_all_classes():
    model = _build(TINY, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    with EventStorage():
        losses = model([make_input(128, 128, BOXES)])
    assert losses["loss_mask_stage2"] > 0
    assert model.roi_heads.mask_head[0].predict(torch.zeros(3, 64, 14, 14), None).shape[1] == 1


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("merge", ["mean", "last"])
def test_masks_of_the_stages_are_merged(flow, merge):
    heads = _build(
        TINY, "MODEL.HTC.MASK_MERGE", merge, "MODEL.HTC.MASK_INFO_FLOW", flow
    ).roi_heads.eval()
    for head in heads.mask_head:
        torch.nn.init.normal_(head.predictor.weight)
    features = {f"p{k}": torch.randn(1, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    classes = torch.tensor([1, 3])
    boxes = Boxes(torch.tensor(BOXES).float())
    given = Instances((128, 128), pred_boxes=boxes, pred_classes=classes)
    with torch.no_grad():
        (found,) = heads.forward_with_given_boxes(features, [given])
        pooled = heads.pool_masks(heads.make_maps(features)[0], [boxes])
        previous, probs = None, []
        for head in heads.mask_head:
            previous, logits = head(pooled, previous if flow else None, classes)
            probs.append(logits.sigmoid())
    expected = probs[-1] if merge == "last" else sum(probs) / 3
    torch.testing.assert_close(found.pred_masks, expected)


TWO_STAGES = (
    *("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6), "MODEL.HTC.STAGE_LOSS_WEIGHTS", (1.0, 0.5)),
    *("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10, 10, 5, 5], [20, 20, 10, 10]]),
)


@pytest.mark.parametrize("how", ["logits", "probs"])
def test_scores_of_two_stages_are_merged_in_a_model(how, monkeypatch):
    model = _build(TINY, *TWO_STAGES, "MODEL.HTC.SCORE_MERGE", how, "MODEL.HTC.SEMANTIC_ON", False)
    heads, seen = model.eval().roi_heads, []
    for stage, predictor in enumerate(heads.box_predictor):
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3 * (stage + 1))
    run = heads._run_stage
    monkeypatch.setattr(heads, "_run_stage", lambda *a: seen.append(run(*a)) or seen[-1])
    with torch.no_grad():
        (output,) = model([make_input(128, 128, [])])
    first, second = (logits for logits, _ in seen)
    expected = (
        ((first + second) / 2).softmax(dim=1)
        if how == "logits"
        else (first.softmax(dim=1) + second.softmax(dim=1)) / 2
    )
    found = output["instances"]
    best = expected[:, :-1].max()
    torch.testing.assert_close(found.scores.max(), best)
    other = "probs" if how == "logits" else "logits"
    assert not torch.allclose(merge_scores(torch.stack([first, second]), other), expected)


def test_training_of_two_stages_logs_its_boxes():
    model = _build(TINY, *TWO_STAGES)
    with EventStorage() as storage:
        losses = model([make_input(128, 128, BOXES), make_input(96, 128, [], seed=1)])
    assert {name for name in losses if name.endswith("_stage1")} and "loss_cls_stage2" not in losses
    for stage in range(2):
        counts = [
            storage.history(f"stage{stage}/roi_head/num_{kind}_samples").latest()
            for kind in ("fg", "bg")
        ]
        # Two objects are boxes of their own, and at most 64 boxes of each image are taken.
        assert counts[0] >= len(BOXES) / 2 and sum(counts) <= 64


def _sum_losses(heads, features, records):
    """Losses of the heads on fixed proposals, all of which are taken."""
    boxes = Boxes(torch.tensor([[8, 10, 62, 68], [55, 44, 118, 108], [0, 0, 30, 30.0]]))
    objects = [record["instances"] for record in records]
    proposals = [Instances((128, 128), proposal_boxes=boxes) for _ in records]
    with EventStorage() as storage, torch.no_grad():
        _, losses = heads(None, features, proposals, objects)
    kinds = {}
    for stage in range(3):
        counts = [
            storage.history(f"stage{stage}/roi_head/num_{kind}_samples").latest() * len(records)
            for kind in ("fg", "bg")
        ]
        kinds |= {f"loss_mask_stage{stage}": counts[0]}
        kinds |= {f"loss_{name}_stage{stage}": sum(counts) for name in ("cls", "box_reg")}
    return losses, kinds


def test_losses_of_a_batch_are_means_of_those_of_its_images():
    # Without interleaving the logged positives are those of the masks, too.
    overrides = ["MODEL.HTC.SEMANTIC_ON", False, "MODEL.HTC.INTERLEAVED", False]
    heads = _build(TINY, *overrides).roi_heads.train()
    features = {f"p{k}": torch.randn(2, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    records = [make_input(128, 128, BOXES), make_input(128, 128, BOXES[:1], seed=1)]
    batch, counts = _sum_losses(heads, features, records)
    parts = [
        _sum_losses(heads, {name: x[i : i + 1] for name, x in features.items()}, [record])
        for i, record in enumerate(records)
    ]
    for name, count in counts.items():
        assert sum(own[name] for _, own in parts) == pytest.approx(count)
        expected = sum(losses[name] * own[name] for losses, own in parts) / count
        torch.testing.assert_close(batch[name], expected, rtol=1e-4, atol=1e-6)
    assert len({own["loss_mask_stage0"] for _, own in parts}) == 2


def test_no_proposals_and_no_detections():
    model = _build().eval()
    features = {f"p{k}": torch.randn(2, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    nothing = Boxes(torch.zeros(0, 4))
    proposals = [Instances((128, 128), proposal_boxes=nothing) for _ in range(2)]
    with torch.no_grad():
        found, _ = model.roi_heads(None, features, proposals, None)
    assert [len(own) for own in found] == [0, 0]
    assert found[0].pred_masks.shape == (0, 1, 28, 28)


def test_training_without_proposals_and_objects():
    heads = _build(TINY, "MODEL.HTC.SEMANTIC_ON", False).roi_heads.train()
    features = {f"p{k}": torch.randn(1, 64, 128 >> k, 128 >> k) for k in range(2, 7)}
    proposals = [Instances((128, 128), proposal_boxes=Boxes(torch.zeros(0, 4)))]
    objects = [make_input(128, 128, [])["instances"]]
    with EventStorage():
        _, losses = heads(None, features, proposals, objects)
    assert len(losses) == 9 and not any(losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_without_masks_there_are_boxes():
    model = build_seeded_model(keep_everything(get_tiny_config(TINY, ["MODEL.MASK_ON", False])))
    with EventStorage():
        losses = model([make_input(128, 128, BOXES)])
    assert not [name for name in losses if "mask" in name]
    with torch.no_grad():
        (output,) = model.eval()([make_input(128, 128, [])])
    assert len(output["instances"]) and not output["instances"].has("pred_masks")


def test_training_needs_ground_truth():
    record = make_input(128, 128, BOXES) | {"file_name": "bare.png"}
    del record["instances"]
    with pytest.raises(ZooError, match=r"bare\.png"), EventStorage():
        _build()([record])


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("HTC.MASK_MERGE", "max", "mean, last"),
        ("HTC.SCORE_MERGE", "mean", "logits, probs"),
        ("HTC.SEMANTIC_TARGETS", "both", "auto, stuff, things"),
        ("HTC.SEMANTIC_FUSION", ("box",), "bbox, mask"),
        ("HTC.SEMANTIC_FUSION", (), "SEMANTIC_ON to False"),
        ("HTC.SEMANTIC_IN_FEATURES", ("p2", "p9"), "p9"),
        ("HTC.SEMANTIC_IN_FEATURES", (), "SEMANTIC_FUSION_LEVEL"),
        ("HTC.SEMANTIC_FUSION_LEVEL", 5, "has 5 maps"),
        ("HTC.SEMANTIC_IGNORE_VALUE", 4, "5 or more"),
        ("HTC.SEMANTIC_NUM_CONVS", -1, ""),
        ("HTC.SEMANTIC_CONV_DIM", 0, ""),
        ("HTC.STAGE_LOSS_WEIGHTS", (1.0, 0.5), "one value per stage"),
        ("HTC.STAGE_LOSS_WEIGHTS", (1.0, 0.5, -1.0), "0 or more"),
        ("ROI_BOX_CASCADE_HEAD.IOUS", (0.4, 0.6, 0.7), "IOU_THRESHOLDS"),
        ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "True"),
        ("ROI_HEADS.NAME", "CascadeROIHeads", ""),
        ("META_ARCHITECTURE", "GeneralizedRCNNCompactMasks", "HTCROIHeads"),
        ("ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "HTCMaskHead"),
        ("ROI_MASK_HEAD.POOLER_TYPE", "", "ROIAlignV2"),
        ("ROI_BOX_HEAD.USE_SIGMOID_CE", True, "HTCROIHeads"),
        ("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "HTCROIHeads"),
        ("KEYPOINT_ON", True, ""),
    ],
)
def test_bad_values_are_refused_with_their_key(key, value, named):
    with pytest.raises(ConfigError, match=key.split(".")[-1]) as error:
        _build(TINY, f"MODEL.{key}", value)
    assert named in str(error.value)


def test_the_branch_alone_needs_a_pooler():
    overrides = ["MODEL.MASK_ON", False, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
    with pytest.raises(ConfigError, match=r"POOLER_TYPE is '', but the semantic branch"):
        _build(TINY, *overrides)
    assert not _build(TINY, *overrides, "MODEL.HTC.SEMANTIC_ON", False).roi_heads.mask_on


@pytest.mark.parametrize("entry", ["ExpandCanvas", {"ExpandCanvas": {"prob": 0.5}}])
def test_the_canvas_is_ignored_by_its_own_value(entry):
    overrides = ["INPUT.AUGMENTATIONS", [entry], "MODEL.HTC.SEMANTIC_IGNORE_VALUE"]
    with pytest.raises(ConfigError, match=r"IGNORE_VALUE is 254, but ExpandCanvas .* by 255"):
        _build(TINY, *overrides, 254)
    assert _build(TINY, *overrides, 255).semantic_targets.ignore_value == 255
