"""Test-time augmentation of every method: exact where it must change nothing, and symmetric."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from torch import nn

from instancezoo.cli.main import main
from instancezoo.config import load_cfg
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.engine import Trainer
from instancezoo.errors import ConfigError
from instancezoo.inference import ImagePredictor, ModelWithTTA
from instancezoo.inference.test_time_augmentation import list_copies
from instancezoo.methods import METHODS
from instancezoo.modeling.masks import BoxMasks
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    keep_nothing,
    list_tiny_configs,
    make_image,
)

SIDE = 64
MAX_DETECTIONS = 20
FEW = [word for method in METHODS for word in (method.detection_limit, MAX_DETECTIONS)]
ONE_COPY = ["TEST.AUG.MIN_SIZES", (SIDE,), "TEST.AUG.FLIP", False]
SIZES = ["INPUT.MIN_SIZE_TEST", SIDE, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (SIDE,)]


def _get_config(name, *overrides):
    cfg = get_tiny_config(name, [*FEW, *SIZES])
    if cfg.INPUT.FIXED_SIZE:
        cfg.INPUT.FIXED_SIZE = (SIDE, SIDE)
    cfg.merge_from_list(list(overrides))
    return keep_everything(cfg)


@pytest.fixture(scope="module", params=list_tiny_configs())
def method(request):
    """(config name, model with random weights)."""
    return request.param, build_seeded_model(_get_config(request.param)).eval()


def _predict(model, record):
    with torch.no_grad():
        return model([record])[0]["instances"]


def _assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for name in ("scores", "pred_classes"):
        assert torch.equal(found.get(name), expected.get(name))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert found.has("pred_masks") == expected.has("pred_masks")
    if found.has("pred_masks"):
        masks, others = found.pred_masks, expected.pred_masks
        assert masks == others if isinstance(masks, list) else torch.equal(masks, others)


@pytest.mark.parametrize("mask_output", ["bitmask", "rle"])
@pytest.mark.parametrize("height,width", [(SIDE, 80), (56, 48)], ids=["as_it_is", "resized"])
def test_one_copy_of_the_plain_size_gives_the_plain_result(method, mask_output, height, width):
    name, model = method
    cfg = _get_config(name, *ONE_COPY, "MODEL.MASK_OUTPUT", mask_output)
    image = make_image(height, width)
    resize = build_resize(cfg, is_train=False)
    plain_input = make_model_input(image.permute(1, 2, 0).numpy(), resize)
    model.mask_output = mask_output
    expected = _predict(model, plain_input)
    model.mask_output = "bitmask"  # of no importance to the copies
    found = _predict(ModelWithTTA(cfg, model), {"image": image})
    _assert_equal(found, expected)


def test_a_mirrored_image_gives_mirrored_results(method, monkeypatch):
    name, model = method
    heads = getattr(model, "roi_heads", None)
    if hasattr(heads, "place_masks"):  # on whole pixels, cut to the left
        monkeypatch.setattr(heads, "place_masks", BoxMasks)
    augmented = ModelWithTTA(_get_config(name, "TEST.AUG.FLIP", True), model)
    image = make_image(SIDE, 80)
    one, other = (_predict(augmented, {"image": picture}) for picture in (image, image.flip(2)))
    assert len(one) == len(other) > 0
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.pred_classes, other.pred_classes)
    x0, y0, x1, y1 = other.pred_boxes.tensor.unbind(1)
    mirrored = torch.stack([80 - x1, y0, 80 - x0, y1], dim=1)
    torch.testing.assert_close(one.pred_boxes.tensor, mirrored, rtol=0, atol=1e-4)
    if one.has("pred_masks"):
        assert torch.equal(one.pred_masks, other.pred_masks.flip(2))


def test_both_mask_outputs_agree_and_the_limit_holds(method):
    name, model = method
    scales = ["TEST.AUG.MIN_SIZES", (48, SIDE), "TEST.AUG.FLIP", True]
    record = {"image": make_image(SIDE, 80), "height": 120, "width": 100}
    found = {
        form: _predict(
            ModelWithTTA(_get_config(name, *scales, "MODEL.MASK_OUTPUT", form), model), record
        )
        for form in ("bitmask", "rle")
    }
    bitmask, rle = found["bitmask"], found["rle"]
    assert bitmask.image_size == (120, 100)
    assert 0 < len(bitmask) == len(rle) <= MAX_DETECTIONS
    assert (bitmask.scores.diff() <= 0).all()
    if rle.has("pred_masks"):
        decoded = coco_mask.decode(rle.pred_masks).astype(bool)
        assert np.array_equal(decoded.transpose(2, 0, 1), bitmask.pred_masks.numpy())


def test_no_detection_has_all_fields(method):
    name, _ = method
    cfg = keep_nothing(get_tiny_config(name, SIZES))
    augmented = ModelWithTTA(cfg, build_seeded_model(cfg).eval())
    for augmented.mask_output in ("bitmask", "rle"):
        found = _predict(augmented, {"image": make_image(SIDE, 80)})
        assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
        if not cfg.MODEL.MASK_ON:
            assert not found.has("pred_masks")
        elif augmented.mask_output == "rle":
            assert found.pred_masks == []
        else:
            assert found.pred_masks.shape == (0, SIDE, 80)


class _Squares(nn.Module):
    """Finds the bright square of an image, and in images of `blind_at` columns nothing."""

    def __init__(self, blind_at=0):
        super().__init__()
        self.blind_at = blind_at

    def forward(self, batch):
        results = []
        for record in batch:
            mask = record["image"].float().mean(dim=0) > 128
            mask = mask[:: mask.shape[0] // record["height"], :: mask.shape[1] // record["width"]]
            rows, columns = (mask.any(dim=d).nonzero().flatten() for d in (1, 0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            count = int(record["image"].shape[2] != self.blind_at)
            instances = Instances((record["height"], record["width"]))
            instances.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float32)[:count])
            instances.scores = torch.tensor([0.8])[:count]
            instances.mask_scores = torch.tensor([0.4])[:count]  # as methods that score masks give
            instances.pred_classes = torch.tensor([2])[:count]
            instances.pred_masks = mask[None][:count]
            results.append({"instances": instances})
        return results


def _make_square():
    image = torch.zeros(3, 8, 12, dtype=torch.uint8)
    image[:, 2:6, 1:4] = 255
    return image


def test_masks_boxes_and_scores_come_back_into_the_frame_of_the_image():
    copies = list_copies(_get_config("solo/solo_tiny", "TEST.AUG.MIN_SIZES", (8, 16)))
    assert [copy.is_mirrored for copy in copies] == [False, True] * 2
    found = _predict(ModelWithTTA(_Squares(), copies=copies), {"image": _make_square()})
    assert found.pred_boxes.tensor.tolist() == [[1, 2, 4, 6]]
    assert found.pred_masks.sum() == 12 and found.pred_masks[0, 2:6, 1:4].all()
    assert found.scores.tolist() == pytest.approx([0.8]) and found.pred_classes.tolist() == [2]
    assert found.mask_scores.tolist() == pytest.approx([0.4])


class _Labels(_Squares):
    """As above, of images whose semantic map has the square, too."""

    def forward(self, batch):
        for record in batch:
            expected = (record["image"][0] > 128).long() * self.blind_at
            assert torch.equal(record["sem_seg"], expected)
        return super().forward(batch)


@pytest.mark.parametrize("label", [7, 700])
def test_semantic_maps_follow_the_image(label):
    copies = list_copies(_get_config("solo/solo_tiny", "TEST.AUG.MIN_SIZES", (8, 16)))
    image = _make_square()
    record = {"image": image, "sem_seg": (image[0] > 0).long() * label}
    found = _predict(ModelWithTTA(_Labels(label), copies=copies), record)
    assert found.pred_boxes.tensor.tolist() == [[1, 2, 4, 6]]


def test_thresholds_and_limits_apply_after_merging():
    copies = list_copies(_get_config("solo/solo_tiny", "TEST.AUG.MIN_SIZES", (8, 16)))
    model, record = _Squares(blind_at=24), {"image": _make_square()}
    found = _predict(ModelWithTTA(model, copies=copies, lowest_score=0.55), record)
    assert found.scores.tolist() == pytest.approx([0.6])  # half of the copies find it with 0.8
    assert found.mask_scores.tolist() == pytest.approx([0.3])
    assert len(_predict(ModelWithTTA(model, copies=copies, lowest_score=0.65), record)) == 0
    assert len(_predict(ModelWithTTA(model, copies=copies, max_per_image=0), record)) == 0


@pytest.mark.parametrize("name", ["polarmask/polarmask_tiny", "mask_rcnn/mask_rcnn_tiny"])
def test_fixed_sizes_keep_their_proportion(name):
    cfg = _get_config(name, "INPUT.FIXED_SIZE", (64, 96))
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (64, 96), "TEST.AUG.MAX_SIZE", 120])
    copies = list_copies(cfg)
    assert [copy.input_size for copy in copies] == [(64, 96)] * 2 + [(80, 120)] * 2
    model = build_seeded_model(cfg).eval()
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    image = make_image(50, 70)
    found = _predict(ModelWithTTA(cfg, model), {"image": image})
    assert len(found) > 0 and found.image_size == (50, 70)
    assert sizes[0] == sizes[1] == (64, 96) != sizes[2] == sizes[3]
    assert getattr(model, "input_size", (64, 96)) == (64, 96)
    single = ModelWithTTA(model, copies=copies[:1], max_per_image=MAX_DETECTIONS, lowest_score=-1)
    resize = build_resize(cfg, is_train=False)
    expected = _predict(model, make_model_input(image.permute(1, 2, 0).numpy(), resize))
    _assert_equal(_predict(single, {"image": image}), expected)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of Mask R-CNN's random weights."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(build_seeded_model(get_tiny_config("mask_rcnn/mask_rcnn_tiny")).state_dict(), path)
    return str(path)


def test_the_predictor_augments(weights):
    image = make_image(80, 72).permute(1, 2, 0).numpy()
    cfg = _get_config("mask_rcnn/mask_rcnn_tiny", "MODEL.WEIGHTS", weights, *ONE_COPY)
    augmented = ImagePredictor(cfg)(image)
    cfg.TEST.AUG.ENABLED = False
    _assert_equal(augmented, ImagePredictor(cfg)(image))


def test_confidence_applies_to_merged_scores(weights):
    image = make_image(SIDE, 80).permute(1, 2, 0).numpy()
    cfg = _get_config("mask_rcnn/mask_rcnn_tiny", "MODEL.WEIGHTS", weights)
    every = ImagePredictor(cfg)(image)
    confidence = float(every.scores.median())
    found = ImagePredictor(cfg, confidence)(image)
    assert 0 < len(found) < len(every)
    assert torch.equal(found.scores, every.scores[every.scores >= confidence])


def test_evaluation_stands_beside_the_plain_one(few_shapes, weights, tmp_path):
    sets = ["DATASETS.TEST", (few_shapes,), "OUTPUT_DIR", str(tmp_path), "TEST.NUM_PICTURES", 0]
    cfg = _get_config("mask_rcnn/mask_rcnn_tiny", *sets, "MODEL.WEIGHTS", weights, *ONE_COPY)
    results = Trainer.evaluate_weights(cfg)
    assert list(results) == ["bbox", "segm", "bbox_TTA", "segm_TTA"]
    files = [tmp_path / folder / few_shapes for folder in ("inference", "inference_TTA")]
    plain, augmented = (json.loads((f / "coco_instances_results.json").read_text()) for f in files)
    assert plain and augmented == plain


def test_the_last_evaluation_of_a_training_augments(few_shapes, narrow_model, tmp_path):
    sets = ["DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", (few_shapes,)]
    brief = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 1]
    brief += ["TEST.EVAL_PERIOD", 1, "TEST.NUM_PICTURES", 0, "OUTPUT_DIR", str(tmp_path)]
    cfg = _get_config("mask_rcnn/mask_rcnn_tiny", *sets, *brief, *narrow_model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert list(trainer.train()) == ["bbox", "segm", "bbox_TTA", "segm_TTA"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "segm_TTA/AP" in line] == [1]


def test_polygons_cannot_be_written(weights, tmp_path, capsys):
    config = "configs/mask_rcnn/mask_rcnn_tiny.yaml"
    arguments = ["predict", "picture.png", "--config-file", config, "--weights", weights]
    arguments += ["--output", str(tmp_path), "--masks", "polygon", "--opts"]
    assert main([*arguments, "TEST.AUG.ENABLED", "True", "DATASETS.TEST", "()"]) != 0
    assert "TEST.AUG" in capsys.readouterr().err


def test_keypoints_are_refused():
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.ENABLED.*keypoints"):
        load_cfg("", ["TEST.AUG.ENABLED", True, "MODEL.KEYPOINT_ON", True])
