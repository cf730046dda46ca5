"""FCOS as a detector and as the first stage of other methods; its options; bad configs."""

import copy

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import ImageList
from torch import nn

from instancezoo import get_cfg
from instancezoo.errors import ConfigError, ZooError
from instancezoo.fcos import FCOSProposals
from instancezoo.fcos.decode import DecodeSettings
from instancezoo.layers.deform_conv import DeformConv
from instancezoo.modeling.point_assignment import PointSpec
from instancezoo.testing import build_seeded_model, get_tiny_config, make_image, make_input

BOXES = [[10, 12, 40, 50], [50, 20, 110, 90], [60, 30, 100, 80]]
HEAD = "proposal_generator.fcos_head"
# What users of AdelaiDet have.
ADELAIDET_CONFIG = """
MODEL:
  META_ARCHITECTURE: "OneStageDetector"
  BACKBONE:
    NAME: "build_fcos_resnet_fpn_backbone"
  RESNETS:
    OUT_FEATURES: ["res3", "res4", "res5"]
    DEPTH: 50
  FPN:
    IN_FEATURES: ["res3", "res4", "res5"]
  PROPOSAL_GENERATOR:
    NAME: "FCOS"
  FCOS:
    USE_RELU: True
    NUM_CLASSES: 7
    POST_NMS_TOPK_TEST: 50
"""


def _build(*overrides):
    """The tiny model; keys without a dot are those of MODEL.FCOS."""
    words = list(overrides)
    words[::2] = [key if "." in key else f"MODEL.FCOS.{key}" for key in words[::2]]
    return build_seeded_model(get_tiny_config("fcos/fcos_tiny", words))


def _make_talkative(model):
    """Put a model into inference mode and let it detect things in noise."""
    head = model.proposal_generator.fcos_head
    generator = torch.Generator().manual_seed(1)
    for conv in (head.cls_logits, head.bbox_pred, head.ctrness):
        conv.weight.data.normal_(std=0.05, generator=generator)
    head.cls_logits.bias.data.fill_(-1.0)
    head.bbox_pred.bias.data.fill_(2.0)
    return model.eval()


def _assert_trains(model, batch, names=("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr")):
    losses = model(batch)
    assert set(losses) == set(names)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    return losses


def _predict(model, batch):
    with torch.no_grad():
        return [result["instances"] for result in model.eval()(batch)]


def _preprocess(model, batch):
    tensors = [(image["image"] - model.pixel_mean) / model.pixel_std for image in batch]
    return ImageList.from_tensors(tensors, model.backbone.size_divisibility)


def test_a_config_of_adelaidet_works(tmp_path):
    file = tmp_path / "R_50_1x.yaml"
    file.write_text(ADELAIDET_CONFIG)
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    assert model.proposal_generator.decode_settings.max_per_image == 50
    assert model.proposal_generator.fcos_head.cls_logits.out_channels == 7
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSAL_GENERATOR.NAME = "FCOS", "RPN"
    assert build_model(cfg).state_dict().keys() == model.state_dict().keys()


def test_starts_at_the_prior_probability():
    model = _build()
    images = _preprocess(model, [make_input(64, 64, [])])
    outputs = model.proposal_generator.predict(model.backbone(images.tensor))
    for logits in outputs.cls_logits:
        assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


def test_trains_without_masks():
    image = make_input(96, 128, BOXES)
    image["instances"].remove("gt_masks")
    losses = _assert_trains(_build(), [image, make_input(128, 112, [], seed=1)])
    assert all(loss > 0 for loss in losses.values())


def test_no_object_leaves_box_losses_at_zero():
    losses = _assert_trains(_build(), [make_input(96, 128, []), make_input(128, 112, [], seed=1)])
    assert losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0 < losses["loss_fcos_cls"]


def test_an_object_between_all_points():
    # Points are 8 pixels apart, from 4 on.
    losses = _assert_trains(_build(), [make_input(96, 128, [[5, 5, 11, 11]])])
    assert losses["loss_fcos_loc"] == 0


def test_missing_ground_truth_names_the_image():
    image = make_input(96, 128, BOXES)
    del image["instances"]
    with pytest.raises(ZooError, match=r"image_0\.png"):
        _build()([image])


@pytest.mark.parametrize("kind", ["iou", "linear_iou"])
def test_other_box_losses_train(kind):
    losses = _assert_trains(_build("LOC_LOSS_TYPE", kind), [make_input(96, 128, BOXES)])
    assert losses["loss_fcos_loc"] > 0


def test_iou_quality():
    model = _build("BOX_QUALITY", "iou")
    names = ("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_iou")
    batch = [make_input(96, 128, BOXES)]
    _assert_trains(copy.deepcopy(model), batch, names)
    _assert_trains(copy.deepcopy(model), [make_input(96, 128, [])], names)
    # The IoU is the target of the quality branch: it does not pull at the boxes.
    model(batch)["loss_fcos_iou"].backward()
    head = model.proposal_generator.fcos_head
    assert head.bbox_pred.weight.grad is None and head.ctrness.weight.grad.any()


def test_normalisers_of_the_class_loss():
    batch = [make_input(96, 128, BOXES)]
    found = {}
    for kind in ("fg", "all", "moving_fg"):
        model = _build("LOSS_NORMALIZER_CLS", kind).eval()
        generator, images = model.proposal_generator, _preprocess(model, batch)
        outputs = generator.predict(model.backbone(images.tensor))
        targets = generator.assign(outputs, images, [batch[0]["instances"]])
        first, second = (generator.losses(outputs, targets)["loss_fcos_cls"] for _ in range(2))
        found[kind] = first.item(), second.item()
    count, num_points = len(targets.point), targets.classes.numel()
    total = found["fg"][0] * count
    assert found["fg"][1] == found["fg"][0]
    assert found["all"][0] == pytest.approx(total / num_points)
    average = 0.9 * 100 + 0.1 * count
    assert found["moving_fg"][0] == pytest.approx(total / average)
    average = 0.9 * average + 0.1 * count
    assert found["moving_fg"][1] == pytest.approx(total / average)
    assert generator.state_dict()["moving_num_foreground"].item() == pytest.approx(average)
    with torch.no_grad():  # as on validation data
        loss = generator.losses(outputs, targets)["loss_fcos_cls"]
    assert loss.item() == pytest.approx(total / average)
    assert generator.moving_num_foreground.item() == pytest.approx(average)


@pytest.mark.parametrize("norm", ["GN", "NaiveGN", "BN", "SyncBN", "none"])
def test_norms(norm):
    model = _build("NORM", norm)
    tower = model.proposal_generator.fcos_head.cls_tower
    assert all(m.bias is not None for m in tower if isinstance(m, nn.Conv2d))
    kinds = [type(module).__name__ for module in tower]
    first = {"GN": "GroupNorm", "NaiveGN": "GroupNorm", "none": "ReLU"}.get(norm, "ModuleList")
    assert kinds[:2] == ["Conv2d", first]
    # Two images: the coarsest level has but one point in each.
    _assert_trains(model, [make_input(96, 128, BOXES), make_input(96, 128, [], seed=1)])


def test_each_level_has_a_batch_norm_of_its_own():
    model = _build("NORM", "BN")
    norms = model.proposal_generator.fcos_head.bbox_tower[1]
    assert len(norms) == 5 and len({id(norm) for norm in norms}) == 5
    model([make_input(128, 128, BOXES, seed=i) for i in range(2)])
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * 5
    assert not torch.equal(norms[0].running_mean, norms[4].running_mean)


@pytest.mark.parametrize("modulated,channels", [(False, 18), (True, 27)])
def test_only_the_last_convolution_of_two_towers_is_deformable(modulated, channels):
    options = ["USE_DEFORMABLE", True, "NUM_SHARE_CONVS", 2]
    model = _build(*options, "MODEL.RESNETS.DEFORM_MODULATED", modulated)
    found = {name: m for name, m in model.named_modules() if isinstance(m, DeformConv)}
    assert set(found) == {f"{HEAD}.cls_tower.3", f"{HEAD}.bbox_tower.3"}
    assert all(m.offset.out_channels == channels for m in found.values())
    assert all(m.bias is not None for m in found.values())
    _assert_trains(model, [make_input(96, 128, BOXES)])


def test_a_shared_tower_alone():
    model = _build("NUM_SHARE_CONVS", 2, "NUM_CLS_CONVS", 0, "NUM_BOX_CONVS", 0)
    head = model.proposal_generator.fcos_head
    assert (len(head.share_tower), len(head.cls_tower), len(head.bbox_tower)) == (6, 0, 0)
    _assert_trains(model, [make_input(96, 128, BOXES)])


def test_without_scales():
    assert any("scales" in name for name in _build().state_dict())
    model = _build("USE_SCALE", False)
    assert not any("scales" in name for name in model.state_dict())
    _assert_trains(model, [make_input(96, 128, BOXES)])


def test_proposals_in_training():
    model = _build(
        "YIELD_PROPOSAL", True, "INFERENCE_TH_TRAIN", 0.0, "POST_NMS_TOPK_TRAIN", 20,
        "INFERENCE_TH_TEST", 1.0,
    )  # fmt: skip
    _make_talkative(model)
    batch = [make_input(96, 128, BOXES), make_input(90, 100, [], seed=1)]
    images = _preprocess(model, batch)
    features = model.backbone(images.tensor)
    ground_truth = [image["instances"] for image in batch]
    proposals, losses = model.proposal_generator.train()(images, features, ground_truth)
    assert len(losses) == 3 and [len(p) for p in proposals] == [20, 20]
    assert not proposals[0].pred_boxes.tensor.requires_grad
    assert [p.image_size for p in proposals] == [(96, 128), (90, 100)]
    detections, losses = model.proposal_generator.eval()(images, features)
    assert losses == {} and [len(d) for d in detections] == [0, 0]
    assert model.proposal_generator.yield_proposal
    model.proposal_generator.yield_proposal = False
    assert model.proposal_generator.train()(images, features, ground_truth)[0] == []
    with pytest.raises(ZooError, match="instances"):
        model.proposal_generator(images, features)


def test_top_module_and_box_features():
    model = _make_talkative(_build("YIELD_BOX_FEATURES", True))
    top_module = nn.Conv2d(64, 6, 3, padding=1)
    images = _preprocess(model, [make_input(96, 128, [])])
    with torch.no_grad():
        features = model.backbone(images.tensor)
        outputs = model.proposal_generator.predict(features, top_module)
        (found,), _ = model.proposal_generator(images, features, None, top_module)
    assert len(outputs.box_features) == len(outputs.top_features) == 5
    for level, box_features in enumerate(outputs.box_features):
        assert box_features.shape == features[f"p{level + 3}"].shape
        torch.testing.assert_close(outputs.top_features[level], top_module(box_features))
    assert found.top_feat.shape == (len(found), 6) and len(found) > 0
    assert _build().proposal_generator.predict(features).box_features == []


def test_results_are_clipped_and_scaled():
    model = _make_talkative(_build())
    image = {"image": make_image(96, 128), "height": 48, "width": 128}
    (found,) = _predict(model, [image])
    boxes = found.pred_boxes.tensor
    assert found.image_size == (48, 128) and len(found) > 0
    assert boxes.min() >= 0 and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= 48).all()
    assert (found.scores.diff() <= 0).all()
    images = _preprocess(model, [image])
    with torch.no_grad():
        (candidates,), _ = model.proposal_generator(images, model.backbone(images.tensor))
    assert torch.equal(
        model.proposal_generator.postprocess(candidates, 48, 128).pred_boxes.tensor, boxes
    )
    assert {"locations", "fpn_levels"} <= set(found.get_fields())


@pytest.mark.parametrize("height,width", [(1, 1), (33, 7)])
def test_tiny_images(height, width):
    model = _make_talkative(_build())
    (found,) = _predict(model, [{"image": make_image(40, 40)[:, :height, :width]}])
    assert found.image_size == (height, width)


def test_bf16_autocast_keeps_distances_in_fp32():
    model = _build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _assert_trains(model, [make_input(96, 128, BOXES)])
    _make_talkative(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = _predict(model, [make_input(96, 128, BOXES)])
    assert len(found) > 0
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("key", ["MODEL.FPN.TOP_LEVELS", "MODEL.FCOS.TOP_LEVELS"])
@pytest.mark.parametrize("levels", [0, 1])
def test_fewer_levels(levels, key):
    names, strides = ["p3", "p4", "p5", "p6"][: 3 + levels], [8, 16, 32, 64][: 3 + levels]
    model = _build(
        key, levels, "IN_FEATURES", names, "FPN_STRIDES", strides,
        "SIZES_OF_INTEREST", [32, 64, 128][: 2 + levels],
    )  # fmt: skip
    assert len(model.proposal_generator.fcos_head.scales) == 3 + levels
    _assert_trains(model, [make_input(96, 128, BOXES)])


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("NORM", "LN", "FCOS.NORM"),
        ("BOX_QUALITY", "ctr", "FCOS.BOX_QUALITY"),
        ("LOC_LOSS_TYPE", "diou", "FCOS.LOC_LOSS_TYPE"),
        ("LOSS_NORMALIZER_CLS", "bg", "FCOS.LOSS_NORMALIZER_CLS"),
        ("FPN_STRIDES", [4, 8, 16, 32, 64], "FCOS.FPN_STRIDES"),
        ("SIZES_OF_INTEREST", [64, 128], "FCOS.SIZES_OF_INTEREST"),
        ("TOP_LEVELS", 0, "FCOS.IN_FEATURES is .*p6.*p3, p4, p5"),
        ("TOP_LEVELS", 3, "FCOS.TOP_LEVELS is 3"),
        ("MODEL.FPN.TOP_LEVELS", 3, "FPN.TOP_LEVELS is 3"),
    ],
)
def test_bad_config_values_name_the_key(key, value, named):
    with pytest.raises(ConfigError, match=rf"MODEL\.{named}"):
        _build(key, value)


def test_published_names_set_one_by_one_serve_too():
    cfg = get_tiny_config("fcos/fcos_tiny")
    cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    node = cfg.MODEL.FCOS
    node.TOP_LEVELS, node.IN_FEATURES = 0, ["p3", "p4", "p5"]
    node.FPN_STRIDES, node.SIZES_OF_INTEREST = [8, 16, 32], [32, 64]
    assert list(build_model(cfg).backbone.output_shape()) == ["p3", "p4", "p5"]
    assert node.TOP_LEVELS == 0  # the caller's config stays as it is


def test_a_level_key_set_after_the_backbone_was_built_is_refused():
    cfg = get_tiny_config("fcos/fcos_tiny")
    shapes = build_backbone(cfg).output_shape()
    cfg.MODEL.FCOS.TOP_LEVELS = 0
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.TOP_LEVELS is 0"):
        FCOSProposals(cfg, shapes)
    cfg.MODEL.FCOS.TOP_LEVELS = 2  # what the backbone has
    FCOSProposals(cfg, shapes)


def test_the_later_of_both_level_keys_counts():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.FCOS.TOP_LEVELS", 0])
    assert cfg.MODEL.FPN.TOP_LEVELS == 0
    cfg.merge_from_list(["MODEL.FPN.TOP_LEVELS", 1])
    assert cfg.MODEL.FPN.TOP_LEVELS == 1


@pytest.mark.parametrize("option", ["class_normalizer", "box_loss", "box_quality"])
def test_constructors_refuse_unknown_options(option):
    settings = {"decode_settings": DecodeSettings(), "decode_settings_train": DecodeSettings()}
    points = PointSpec([8], [])
    with pytest.raises(ValueError, match="'x'"):
        FCOSProposals(
            fcos_head=nn.Identity(), in_features=["p3"], points=points, num_classes=1,
            **settings, **{option: "x"},
        )  # fmt: skip
