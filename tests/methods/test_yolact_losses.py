"""YOLACT's losses against slow references, and its inference rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn

from instancezoo.errors import ConfigError
from instancezoo.modeling.objects import collect_ground_truth
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input
from instancezoo.yolact.decode import DecodeSettings, find_candidates, suppress_duplicates
from instancezoo.yolact.head import MaskIoUNet
from instancezoo.yolact.losses import (
    PositiveMasks,
    class_loss,
    crop_to_boxes,
    find_hard_negatives,
    mask_loss,
)


def test_hard_negatives_are_three_per_positive_of_each_image() -> None:
    labels = torch.tensor([[1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, 0], [1, 2, 3, 0, 0, -1]])
    loss = torch.tensor([[9.0, 1, 5, 3, 4, 9], [1, 2, 3, 4, 5, 6], [9, 9, 9, 1, 2, 9]])
    chosen = find_hard_negatives(loss, labels, 3)
    assert chosen[0].nonzero().flatten().tolist() == [2, 3, 4]
    assert not chosen[1].any()  # no positive, no negative
    assert chosen[2].nonzero().flatten().tolist() == [3, 4]  # there are no more


def test_neutral_anchors_take_places_among_the_negatives_only_as_the_last() -> None:
    labels = torch.tensor([[1, 0, -1, -1]])
    chosen = find_hard_negatives(torch.tensor([[5.0, 0.5, 7, 7]]), labels, 3)
    assert chosen.tolist() == [[False, True, False, False]]


def test_class_loss_is_the_cross_entropy_of_the_chosen() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 40, 5, requires_grad=True)
    labels = torch.randint(-1, 5, (2, 40)) * (torch.rand(2, 40) < 0.2)
    found = class_loss(logits, labels, 2)
    expected = torch.zeros(())
    for image in range(2):
        log_probs = logits[image].log_softmax(dim=1)
        background = log_probs[:, 0].tolist()
        positive = [p for p in range(40) if labels[image, p] > 0]
        negative = [p for p in range(40) if labels[image, p] == 0]
        negative.sort(key=background.__getitem__)
        for p in positive + negative[: 2 * len(positive)]:
            expected = expected - log_probs[p, max(int(labels[image, p]), 0)]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert torch.isfinite(logits.grad).all()


def test_crop_keeps_cells_from_one_before_to_one_after_the_box() -> None:
    boxes = torch.tensor([[2.2, 1.0, 4.0, 2.5], [-3.0, -2, 20, 1], [9, 9, 12, 12]])
    cropped = crop_to_boxes(torch.ones(3, 6, 8), boxes)
    for mask, (x1, y1, x2, y2) in zip(cropped, boxes.tolist(), strict=True):
        for y in range(6):
            for x in range(8):
                inside = x1 - 1 <= x < x2 + 1 and y1 - 1 <= y < y2 + 1
                assert mask[y, x] == inside


def test_mask_loss_counts_object_cells_outside_the_crop_a_hundred() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 3, 3] = True
    probs = torch.zeros(1, 4, 4)
    probs[0, 0, 0] = 0.25
    loss = mask_loss(probs, masks, torch.tensor([[0.0, 0.0, 2.0, 4.0]]))
    expected = (-torch.tensor(0.25).log() + 100) / 8
    torch.testing.assert_close(loss, expected)


def test_measured_ious_and_small_objects() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 0, 0] = True, True
    probs = torch.zeros(3, 4, 4)
    probs[0, 1:3] = 0.75
    positive = PositiveMasks(probs, masks, torch.zeros(3, 4), torch.arange(3), 1.0)
    assert positive.measure_ious().tolist() == pytest.approx([4 / 12, 0, 0])
    assert positive.drop_small(1).classes.tolist() == [0]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.05, 0.3, 0.6, 1.0])
def test_candidates_are_anchors_whose_best_class_exceeds_the_threshold(threshold: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(500, 7) * 3
    probs = logits.softmax(dim=1)[:, 1:]
    rows, found = find_candidates(logits, threshold)
    assert rows.tolist() == (probs.amax(dim=1) > threshold).nonzero().flatten().tolist()
    torch.testing.assert_close(found, probs[rows])


@pytest.mark.parametrize("nms_type", ["fast", "cross_class", "exact"])
def test_every_suppression_keeps_the_better_of_two(nms_type: str) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 60, 60]])
    probs = torch.tensor([[0.6, 0.1], [0.9, 0.05], [0.2, 0.7]])
    settings = DecodeSettings(nms_type=nms_type, max_per_image=2)
    rows, classes, scores = suppress_duplicates(boxes, probs, settings)
    assert rows.tolist() == [1, 2] and classes.tolist() == [0, 1]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7]))


@pytest.mark.parametrize("nms_type", ["fast", "cross_class", "exact"])
@pytest.mark.parametrize("limit", [-1, 3])
def test_models_keep_to_the_limit_with_every_suppression(nms_type: str, limit: int) -> None:
    overrides = ["MODEL.YOLACT.NMS_TYPE", nms_type, "TEST.DETECTIONS_PER_IMAGE", limit]
    cfg = keep_everything(get_tiny_config("yolact/yolact_tiny", overrides))
    model = build_seeded_model(cfg).eval()
    with torch.no_grad():
        count = len(model([make_input(96, 64, [])])[0]["instances"])
    assert count == 3 if limit == 3 else count > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mask_loss_runs_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    """Saturated masks: in half precision their gradients would be 0, or infinite times 0."""
    model = build_seeded_model(get_tiny_config("yolact/yolact_tiny"))
    batch = [make_input(128, 128, [[10, 10, 60, 60], [64, 64, 120, 100]], seed=3)]
    images = model.preprocess(batch)
    with torch.no_grad():
        maps = model.backbone(images.tensor)
        outputs = model.head([maps[name] for name in model.in_features])
    ground_truth = collect_ground_truth(batch, model.device, keep_crowds=True)
    targets = model.assign(outputs, images, ground_truth)
    results = []
    for enabled in (False, True):
        prototypes = (outputs.prototypes.detach() * 30).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = model.losses(replace(outputs, prototypes=prototypes), targets)["loss_mask"]
        loss.backward()
        results.append((loss.detach(), prototypes.grad))
    assert results[0][1].abs().max() > 0
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_of_crowds_only_trains_nothing_but_the_background() -> None:
    model = build_seeded_model(get_tiny_config("yolact/yolact_tiny", ["INPUT.CROWDS", True]))
    batch = [make_input(128, 128, [[10, 10, 100, 100]])]
    batch[0]["instances"].gt_is_crowd = torch.tensor([True])
    losses = _losses(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask"] == losses["loss_box"] == losses["loss_cls"] == 0


def test_scores_after_rescoring_exceed_the_threshold() -> None:
    overrides = ["MODEL.YOLACT.MASKIOU.RESCORE_BOX", True]
    cfg = keep_everything(get_tiny_config("yolact/yolact_plus_tiny", overrides))
    model = build_seeded_model(cfg).eval()
    nn.init.constant_(model.head.mask_iou.convs[-2].bias, 0.5)
    image = [make_input(96, 64, [])]
    with torch.no_grad():
        scores = model(image)[0]["instances"].scores
        limit = scores.median().item()
        model.decode_settings = replace(model.decode_settings, score_thresh=limit)
        kept = model(image)[0]["instances"].scores
    assert torch.equal(kept, scores[scores > limit]) and 0 < len(kept) < len(scores)


def _losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: loss.detach() for name, loss in model(batch).items()}


def test_a_share_of_the_masks_stands_for_all() -> None:
    model = build_seeded_model(get_tiny_config("yolact/yolact_tiny"))
    batch = [make_input(128, 128, [[10, 10, 60, 60], [64, 64, 120, 100]], seed=3)]
    full = _losses(model, batch)
    model.loss_settings = replace(model.loss_settings, masks_to_train=1)
    sampled = [model(batch)["loss_mask"].item() for _ in range(300)]
    mean = sum(sampled) / len(sampled)
    assert min(sampled) < full["loss_mask"].item() < max(sampled)
    assert mean == pytest.approx(full["loss_mask"].item(), rel=0.1)


def test_norms_are_frozen_for_small_batches() -> None:
    cfg = get_tiny_config("yolact/yolact_tiny", ["SOLVER.IMS_PER_BATCH", 4])
    frozen, trained = build_model(cfg), build_model(get_tiny_config("yolact/yolact_tiny"))
    for model, is_frozen in ((frozen, True), (trained, False)):
        network = model.train().backbone.bottom_up
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(norm.training != is_frozen for norm in norms)
        assert all(p.requires_grad != is_frozen for norm in norms for p in norm.parameters())


def test_rescored_masks_and_truncated_boxes() -> None:
    cfg = keep_everything(get_tiny_config("yolact/yolact_plus_tiny"))
    model = build_seeded_model(cfg).eval()
    nn.init.constant_(model.head.mask_iou.convs[-2].bias, 0.5)
    image = [make_input(96, 64, [])]
    with torch.no_grad():
        plain = model(image)[0]["instances"]
        model.decode_settings = replace(model.decode_settings, rescore_boxes=True)
        model.truncate_boxes = True
        rescored = model(image)[0]["instances"]
    assert len(plain) and plain.has("mask_scores")
    assert (plain.scores.diff() <= 0).all()
    assert torch.equal(rescored.scores, rescored.mask_scores)
    assert (rescored.scores.diff() <= 0).all()
    torch.testing.assert_close(plain.mask_scores.sort().values, rescored.mask_scores.sort().values)
    boxes = rescored.pred_boxes.tensor
    assert torch.equal(boxes, boxes.trunc())
    assert not torch.equal(plain.pred_boxes.tensor, plain.pred_boxes.tensor.trunc())


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("MODEL.YOLACT.ANCHOR_SCALES", [[8], [16]], "ANCHOR_SCALES has 2 lists.*4 levels"),
        ("MODEL.YOLACT.ANCHOR_SCALES", [[8], [8, 16], [16], [32]], "same number of sides"),
        ("MODEL.YOLACT.ANCHOR_SCALES", [[8], [-1], [16], [32]], "positive numbers"),
        ("MODEL.YOLACT.NMS_TYPE", "soft", "NMS_TYPE.*fast"),
        ("MODEL.YOLACT.NEG_IOU", 0.6, "NEG_IOU is 0.6.*POS_IOU"),
        ("INPUT.FIXED_SIZE", (), r"INPUT.FIXED_SIZE is \(\)"),
        ("MODEL.YOLACT.MASKIOU.CONV_CHANNELS", [], r"CONV_CHANNELS is \[\]"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "DETECTIONS_PER_IMAGE is 0"),
    ],
)
def test_values_that_yolact_cannot_work_with(key: str, value: Any, message: str) -> None:
    cfg = get_tiny_config("yolact/yolact_plus_tiny")
    node = cfg
    *sections, name = key.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_mask_iou_net_takes_masks_of_any_size() -> None:
    torch.manual_seed(0)
    network = MaskIoUNet([2, 4], num_classes=3)
    mask = torch.rand(2, 1, 5, 6)
    with torch.no_grad():
        found = network(mask)
        assert torch.equal(found, network(F.pad(mask, (0, 1, 0, 2))))
        large = torch.rand(1, 1, 9, 12)
        expected = large
        for conv in (network.convs[0], network.convs[2], network.convs[4]):
            expected = conv(expected).relu()
        assert torch.equal(network(large), expected.amax(dim=(2, 3)))


def test_semantic_loss_of_an_undecided_network_is_the_classes_times_ln_2() -> None:
    model = build_seeded_model(get_tiny_config("yolact/yolact_tiny"))
    for parameter in model.head.semantic.parameters():
        nn.init.zeros_(parameter)
    losses = _losses(model, [make_input(128, 128, [[10, 10, 60, 60]])])
    expected = 4 * F.softplus(torch.zeros(())).item()
    assert losses["loss_semantic"].item() == pytest.approx(expected)
