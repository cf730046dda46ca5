"""PolarMask as a model: options, input sizes, losses without objects, outputs."""

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from instancezoo import model_zoo
from instancezoo.errors import ConfigError
from instancezoo.inference import ImagePredictor
from instancezoo.layers.deform_conv import DeformConv
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY = "polarmask/polarmask_tiny"
NODE = "MODEL.POLARMASK."
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110], [5, 90, 30, 120]]


def _build(*overrides):
    return build_seeded_model(keep_everything(get_tiny_config(TINY, list(overrides))))


def _predict(model, batch):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


@pytest.mark.parametrize(
    "overrides",
    [
        (NODE + "NUM_RAYS", 18),
        (NODE + "NUM_RAYS", 72),
        (NODE + "RAY_TARGETS", "intersection"),
        (NODE + "FILL_MISSED_RAYS", True),
        (NODE + "RAY_WRAP", True),
        (NODE + "LEGACY_PLUS_ONE", False),
        (NODE + "CENTER", "box", NODE + "CENTER_RADIUS", 0.0),
        (NODE + "BOX_BRANCH", False, NODE + "NMS_BOX", "polygon"),
        (NODE + "USE_DEFORMABLE", True),
        (NODE + "SIZE_DIVISIBILITY", 128),
    ],
    ids=lambda overrides: "-".join(str(value).rsplit(".", 1)[-1] for value in overrides),
)
def test_options_train_and_infer(overrides):
    model = _build(*overrides)
    losses = model([make_input(96, 128, BOXES[:1]), make_input(128, 120, BOXES)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (found,) = _predict(model, [make_input(96, 128, [])])
    num_rays = model.rules.num_rays
    assert len(found) > 0 and found.pred_polygons.shape == (len(found), num_rays, 2)


def test_a_negative_limit_of_detections_is_none():
    batch = [make_input(96, 128, [])]
    counts = [
        len(_predict(_build("TEST.DETECTIONS_PER_IMAGE", n), batch)[0]) for n in (-1, 5000, 7)
    ]
    assert counts[0] == counts[1] > counts[2] == 7


def test_without_a_box_branch_there_are_no_parameters_for_it():
    model = _build(NODE + "BOX_BRANCH", False, NODE + "NMS_BOX", "polygon")
    assert not [name for name, _ in model.head.named_parameters() if "bbox" in name]
    assert "loss_bbox" not in model([make_input(96, 128, BOXES[:1])])


def test_rays_are_counted_by_the_network():
    assert _build(NODE + "NUM_RAYS", 72).head.ray_pred.out_channels == 72


def test_deformable_towers_have_biases_under_their_norms():
    head = _build(NODE + "USE_DEFORMABLE", True).head
    convs = [module for module in head.modules() if isinstance(module, DeformConv)]
    assert len(convs) == 12
    assert all(conv.bias is not None and conv.offset.out_channels == 27 for conv in convs)
    assert all(conv.bias is None for conv in _build().head.cls_tower)


@pytest.mark.parametrize(
    "overrides,key",
    [
        ((NODE + "BOX_BRANCH", False), "NMS_BOX"),
        ((NODE + "NUM_RAYS", 35), "NUM_RAYS"),
        ((NODE + "RAY_TARGETS", "exact"), "RAY_TARGETS"),
        ((NODE + "CENTER", "centroid"), "CENTER"),
        ((NODE + "SIZES_OF_INTEREST", [64]), "SIZES_OF_INTEREST"),
        ((NODE + "FPN_STRIDES", [4, 8, 16, 32, 64]), "FPN_STRIDES"),
        ((NODE + "IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]), "IN_FEATURES"),
    ],
)
def test_values_that_do_not_go_together_name_their_key(overrides, key):
    with pytest.raises(ConfigError, match=rf"MODEL\.POLARMASK\.{key}\b"):
        _build(*overrides)


def test_a_mapper_key_that_was_assigned_not_merged_is_refused():
    cfg = get_tiny_config(TINY)
    cfg.INPUT.FIND_BORDERS = True
    with pytest.raises(ConfigError, match=r"INPUT\.FIND_BORDERS"):
        build_model(cfg)
    cfg.merge_from_list(["INPUT.FIND_BORDERS", True])
    assert cfg.INPUT.MAPPER == "polarmask"


def test_losses_without_positives():
    model = _build()
    losses = model([make_input(96, 128, []), make_input(96, 128, [[40, 40, 41, 41]])])
    zero = {name for name, loss in losses.items() if loss == 0}
    assert zero == {"loss_bbox", "loss_mask", "loss_centerness"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_instance_without_pixels_is_background():
    model = _build()
    inputs = make_input(96, 128, BOXES[:1])
    expected = model([inputs])
    instances = inputs["instances"]
    more = Instances.cat([instances, instances])
    more.gt_masks.tensor[0] = False  # of two equal ones the first would win
    more.gt_classes[0] = 3
    found = model([{**inputs, "instances": more}])
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_distances_are_single_precision_under_autocast():
    model = _build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = model.preprocess([make_input(96, 128, [])])
        features = model.backbone(images.tensor)
        outputs = model.head([features[name] for name in model.in_features])
    assert outputs.cls_logits[0].dtype == torch.bfloat16
    assert {rays.dtype for rays in outputs.rays + outputs.boxes} == {torch.float32}


def test_polygons_are_the_masks():
    model = _build()
    record = make_input(96, 128, [])
    record.update(height=192, width=120)
    (found,) = _predict(model, [record])
    assert found.pred_polygons[:, :, 0].max() <= 120 and found.pred_polygons[:, :, 1].max() <= 192
    for mask, polygon in zip(found.pred_masks, found.pred_polygons.long(), strict=True):
        x, y = polygon.unbind(1)
        assert mask[y, x].all()


@pytest.mark.parametrize("divisor,padded", [(0, (96, 128)), (128, (128, 128)), (48, (96, 192))])
def test_images_are_padded_to_a_multiple(divisor, padded):
    images = _build(NODE + "SIZE_DIVISIBILITY", divisor).preprocess([make_input(90, 100, [])])
    assert tuple(images.tensor.shape[2:]) == padded
    assert images.image_sizes == [(90, 100)]
    assert not images.tensor[..., 90:, :].any() and not images.tensor[..., 100:].any()


def test_images_are_stretched_to_the_fixed_size_in_inference():
    model = _build("INPUT.FIXED_SIZE", (64, 160))
    record = make_input(90, 100, [])
    del record["height"], record["width"]
    (found,) = _predict(model, [record])
    assert found.image_size == (90, 100)  # of the image as it came
    assert found.pred_masks.shape[1:] == (90, 100)
    corner = found.pred_polygons.amax(dim=(0, 1))
    assert corner[0] > 95 and corner[1] > 85
    pixels = nn.functional.interpolate(
        record["image"][None].float(), (64, 160), mode="bilinear", antialias=True
    )
    resized = {"image": pixels[0], "height": 90, "width": 100}
    (expected,) = _predict(model, [resized])
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_detectron2s_predictor_stretches_images_too(tmp_path):
    overrides = ["INPUT.FIXED_SIZE", (64, 160), "INPUT.MIN_SIZE_TEST", 0]
    model = _build(*overrides)
    file = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    cfg = get_tiny_config(TINY, [*overrides, "MODEL.WEIGHTS", str(file), "DATASETS.TEST", ()])
    keep_everything(cfg)
    image = make_input(90, 120, [])["image"].permute(1, 2, 0).numpy()
    stock, ours = DefaultPredictor(cfg)(image)["instances"], ImagePredictor(cfg)(image)
    assert stock.image_size == ours.image_size == (90, 120)
    assert len(stock) == len(ours)
    # Pillow rounds pixels, which moves scores in the third digit.
    np.testing.assert_allclose(stock.scores, ours.scores, atol=5e-3)


def test_published_configs_stretch_to_their_size():
    overrides = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    cfg = model_zoo.get_config("polarmask/polarmask_R_50_FPN_1x", overrides)
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.input_size == (768, 1280) and model.rules.plus_one and not model.rules.ray_wrap
