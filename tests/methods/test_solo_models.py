"""SOLO, Decoupled SOLO and SOLOv2 as whole models: what bad or unusual input gets."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.structures import Instances, PolygonMasks
from pycocotools.mask import decode

from instancezoo import model_zoo
from instancezoo.errors import ConfigError
from instancezoo.modeling.masks import ImageMasks, remove_padding
from instancezoo.modeling.objects import collect_ground_truth
from instancezoo.testing import build_seeded_model, get_tiny_config, make_image, make_input

NODES = {
    "solo/solo_tiny": "SOLO",
    "solo/decoupled_solo_tiny": "SOLO",
    "solov2/solov2_tiny": "SOLOV2",
}
LIGHT = ("solo/decoupled_solo_tiny", ["MODEL.SOLO.SHARED_MASK_TOWER", True])
BOXES = [[10, 12, 40, 50], [50, 20, 110, 90], [60, 30, 100, 80]]

every_method = pytest.mark.parametrize("name", NODES)


def _build(name, overrides=(), seed=0):
    node = NODES[name]
    overrides = [str(w).replace("NODE", node) if "NODE" in str(w) else w for w in overrides]
    return build_seeded_model(get_tiny_config(name, overrides), seed)


def _build_talkative(name, overrides=()):
    """A model in inference mode that detects things in noise."""
    model = _build(name, ["MODEL.NODE.SCORE_THR", 0.3, "MODEL.NODE.UPDATE_THR", 0.0, *overrides])
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in model.head.named_parameters():
        if "predict" in parameter_name and parameter.ndim == 4:
            parameter.data.normal_(std=0.3, generator=generator)
        elif "predict" in parameter_name and "norm" not in parameter_name:
            parameter.data.zero_()
    for buffer in model.modules():
        if isinstance(buffer, torch.nn.BatchNorm2d):
            buffer.running_var.fill_(0.2)
    return model.eval()


def _assert_trains(model, losses):
    assert set(losses) == {"loss_ins", "loss_cate"}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@every_method
@pytest.mark.parametrize(
    "boxes",
    [BOXES, [], [[5, 5, 6, 6]], [[0, 0, 128, 96]]],
    ids=["several", "none", "one pixel", "whole image"],
)
def test_loss_is_finite_and_reaches_every_parameter(name, boxes):
    model = _build(name)
    losses = model([make_input(96, 128, boxes, seed=0), make_input(128, 112, [], seed=1)])
    _assert_trains(model, losses)


@every_method
def test_loss_without_any_positive_cell(name):
    model = _build(name, ["MODEL.NODE.FPN_SCALE_RANGES", [[500, 600]] * 5])
    losses = model([make_input(96, 128, BOXES)])
    assert losses["loss_ins"].item() == 0
    _assert_trains(model, losses)


@every_method
def test_images_of_a_record_without_annotations(name):
    image = make_input(96, 128, BOXES)
    empty = make_input(96, 128, [])
    empty["instances"].remove("gt_masks")
    model = _build(name)
    _assert_trains(model, model([image, empty]))
    image["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match=r"image_0\.png"):
        model([image])
    del image["instances"]
    with pytest.raises(ValueError, match=r"image_0\.png.*instances"):
        model([image])


@every_method
def test_polygons_train_like_bit_masks(name):
    model = _build(name)
    with_masks = make_input(96, 128, BOXES)
    with_polygons = make_input(96, 128, BOXES)
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in BOXES]
    with_polygons["instances"].gt_masks = PolygonMasks(polygons)
    model.eval()  # norms by running statistics: both calls see the same network
    losses = []
    for image in (with_masks, with_polygons):
        images = model.preprocess([image])
        features = model.backbone(images.tensor)
        outputs = model.head([features[name] for name in model.in_features])
        truth = collect_ground_truth([image], model.device)
        losses.append(model.losses(outputs, model.assign(outputs, images, truth)))
    assert losses[0]["loss_ins"] == losses[1]["loss_ins"] != 0


@every_method
def test_detections_have_all_fields_in_both_forms(name):
    inputs = [
        {"image": make_image(100, 128), "height": 150, "width": 192},
        {"image": make_image(128, 90), "height": 64, "width": 45},
    ]
    model = _build_talkative(name)
    with torch.no_grad():
        as_masks = [result["instances"] for result in model(inputs)]
        model.mask_output = "rle"
        as_rle = [result["instances"] for result in model(inputs)]
    for image, masks, rle in zip(inputs, as_masks, as_rle, strict=True):
        size = image["height"], image["width"]
        assert len(masks) == len(rle) > 0
        assert masks.image_size == size
        assert (
            masks.pred_masks.shape == (len(masks), *size) and masks.pred_masks.dtype == torch.bool
        )
        assert masks.pred_classes.dtype == torch.int64
        assert (masks.scores.diff() <= 0).all()
        assert torch.equal(masks.scores, rle.scores)
        assert torch.equal(masks.pred_boxes.tensor, rle.pred_boxes.tensor)
        for mask, code, box in zip(
            masks.pred_masks, rle.pred_masks, masks.pred_boxes.tensor.long(), strict=True
        ):
            assert torch.equal(mask, torch.from_numpy(decode(code)).bool())
            x0, y0, x1, y1 = box.tolist()
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
            assert mask[y0].any() and mask[y1 - 1].any()
            assert mask[:, x0].any() and mask[:, x1 - 1].any()


@every_method
@pytest.mark.parametrize("mask_output", ["bitmask", "rle"])
def test_no_detection(name, mask_output):
    model = _build(name, ["MODEL.NODE.SCORE_THR", 0.99, "MODEL.MASK_OUTPUT", mask_output]).eval()
    with torch.no_grad():
        found = model([{"image": make_image(64, 80), "height": 70, "width": 90}])[0]["instances"]
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)
    if mask_output == "bitmask":
        assert found.pred_masks.shape == (0, 70, 90) and found.pred_masks.dtype == torch.bool
    else:
        assert found.pred_masks == []


@every_method
def test_a_batch_of_one_equals_the_row_of_a_batch(name):
    inputs = [{"image": make_image(96, 128, seed)} for seed in range(3)]
    # In fp32 the last bit, which depends on the batch size, decides between near ties in noise.
    model = _build_talkative(name).double()
    with torch.no_grad():
        together = model(inputs)
        for image, row in zip(inputs, together, strict=True):
            alone, row = model([image])[0]["instances"], row["instances"]
            assert len(alone) == len(row)
            torch.testing.assert_close(alone.scores, row.scores)
            assert torch.equal(alone.pred_classes, row.pred_classes)
            assert (alone.pred_masks != row.pred_masks).double().mean() < 1e-5


@every_method
@pytest.mark.parametrize("height,width", [(1, 1), (33, 7)])
def test_tiny_images(name, height, width):
    model = _build_talkative(name)
    with torch.no_grad():
        found = model([{"image": make_image(40, 40)[:, :height, :width]}])[0]["instances"]
    assert found.image_size == (height, width)


@every_method
def test_bf16_autocast_trains_and_infers(name):
    model = _build(name)
    inputs = [make_input(96, 128, BOXES)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    _assert_trains(model, losses)
    model = _build_talkative(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(inputs)[0]["instances"]
    assert len(found) > 0 and found.scores.dtype == torch.float32
    assert torch.isfinite(found.scores).all()


@pytest.mark.parametrize("keep", [False, True])
def test_masks_that_end_empty_stay_only_on_request(keep):
    model = _build_talkative("solov2/solov2_tiny", ["MODEL.SOLOV2.KEEP_EMPTY_MASKS", keep])
    scores = torch.zeros(2, 8, 8)
    scores[0, :4, :4] = 1.0
    scores[1, 6:, 6:] = 1.0  # only in the padding
    detections = Instances((16, 16))
    detections.scores = torch.tensor([0.9, 0.8])
    detections.pred_classes = torch.tensor([1, 2])
    detections.pred_masks = ImageMasks(scores, remove_padding((32, 32), (16, 16)))
    for mask_output in ("bitmask", "rle"):
        model.mask_output = mask_output
        found = model.postprocess(detections, 20, 20)
        assert found.pred_classes.tolist() == ([1, 2] if keep else [1])
        assert len(found.pred_masks) == len(found)
        assert found.pred_boxes.tensor.tolist() == [[0, 0, 20, 20], [0, 0, 0, 0]][: len(found)]


def test_only_the_light_model_shares_its_mask_tower():
    shared, separate = _build(*LIGHT), _build(LIGHT[0])
    assert list(shared.head.mask_towers) == ["xy"]
    assert list(separate.head.mask_towers) == ["x", "y"]
    _assert_trains(shared, shared([make_input(96, 128, BOXES)]))


@pytest.mark.parametrize(
    "name,last_only,version,count",
    [
        ("solo/solo_tiny", True, "DCN", 2),
        ("solo/decoupled_solo_tiny", False, "DCN", 12),
        ("solov2/solov2_tiny", False, "DCNv2", 2 * 2 + 1 + 1 + 2 + 3 + 1),
    ],
)
def test_deformable_towers(name, last_only, version, count):
    overrides = ["MODEL.NODE.USE_DCN_IN_INSTANCE", True, "MODEL.NODE.DCN_LAST_CONV_ONLY", last_only]
    overrides += ["MODEL.NODE.TYPE_DCN", version]
    if name.startswith("solov2"):
        overrides += ["MODEL.SOLOV2.DCN_IN_MASK_HEAD", True]
    model = _build(name, overrides)
    offsets = [n for n, _ in model.head.named_parameters() if n.endswith("offset.weight")]
    assert len(offsets) == count
    losses = model([make_input(96, 128, BOXES)])
    _assert_trains(model, losses)


def _read_adelaidet_config():
    file = Path(__file__).parents[1] / "golden" / "solov2_adet" / "spec.json"
    return json.loads(file.read_text())["config"]["MODEL.SOLOV2"]


def test_adelaidet_config_is_read_as_it_is(tmp_path):
    file = tmp_path / "theirs.yaml"
    node = _read_adelaidet_config()
    file.write_text(yaml.safe_dump({"MODEL": {"SOLOV2": node}, "VERSION": 2}))
    cfg = model_zoo.get_config("solov2/solov2_R_50_FPN_3x_adelaidet", ["MODEL.WEIGHTS", ""])
    ours = cfg.MODEL.SOLOV2.clone()
    cfg.merge_from_file(str(file))
    assert {key: cfg.MODEL.SOLOV2[key] for key in node} == node
    names = set(ours) - {"TARGET_RESIZE", "KEEP_EMPTY_MASKS"}
    followed = {"FPN_INSTANCE_STRIDES", "INSTANCE_IN_CHANNELS", "MASK_IN_CHANNELS", "NUM_MASKS"}
    assert {n: ours[n] for n in names - followed} == {
        n: cfg.MODEL.SOLOV2[n] for n in names - followed
    }
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        assert build_model(cfg).level_strides == node["FPN_INSTANCE_STRIDES"]


@pytest.mark.parametrize(
    "key,value",
    [
        ("FPN_INSTANCE_STRIDES", [4, 8, 16, 32, 64]),
        ("INSTANCE_IN_CHANNELS", 128),
        ("MASK_IN_CHANNELS", 128),
        ("NUM_MASKS", 32),
        ("USE_COORD_CONV", False),
        ("NMS_TYPE", "mask"),
        ("LOSS.FOCAL_USE_SIGMOID", False),
    ],
)
def test_adelaidet_keys_that_cannot_be_followed_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"MODEL\.SOLOV2\.{key}\b"):
        _build("solov2/solov2_tiny", [f"MODEL.SOLOV2.{key}", value])


def test_bad_config_values_name_the_key():
    with pytest.raises(ConfigError, match=r"TYPE_DCN.*v3"):
        _build("solo/solo_tiny", ["MODEL.SOLO.TYPE_DCN", "v3"])
    with pytest.raises(ConfigError, match=r"TARGET_RESIZE.*cv2.*padded"):
        _build("solo/solo_tiny", ["MODEL.SOLO.TARGET_RESIZE", "cv2"])
    with pytest.raises(ConfigError, match=r"NMS_KERNEL.*hard"):
        _build("solov2/solov2_tiny", ["MODEL.SOLOV2.NMS_KERNEL", "hard"])
    with pytest.raises(ConfigError, match="NUM_GRIDS"):
        _build("solo/solo_tiny", ["MODEL.SOLO.NUM_GRIDS", [12, 8]])
    levels = ["MODEL.SOLO.INSTANCE_IN_FEATURES", ["p2", "p3", "p4", "p5", "p9"]]
    with pytest.raises(ConfigError, match=r"INSTANCE_IN_FEATURES.*p9.*p2, p3"):
        _build("solo/solo_tiny", levels)
    with pytest.raises(ConfigError, match=r"MASK_IN_FEATURES.*p7"):
        _build("solov2/solov2_tiny", ["MODEL.SOLOV2.MASK_IN_FEATURES", ["p2", "p7"]])
