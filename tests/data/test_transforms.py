"""Which resize a config asks for, and which objects are too small to learn from."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.data.mappers import build_mapper
from instancezoo.data.transforms import StretchToRandomHeight, build_resize, make_model_input
from instancezoo.errors import ConfigError
from instancezoo.layers.borders import find_borders

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)


def _resize(cfg, is_train):
    return build_resize(cfg, is_train).get_transform(IMAGE).apply_image(IMAGE).shape[:2]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (20,), 80
    return cfg


def test_without_a_fixed_size_the_aspect_ratio_is_kept(cfg):
    assert isinstance(build_resize(cfg, is_train=True), T.ResizeShortestEdge)
    assert _resize(cfg, is_train=True) == (20, 30)
    assert _resize(cfg, is_train=False) == (80, 120)


def test_a_fixed_size_holds_in_training_and_inference(cfg):
    cfg.INPUT.FIXED_SIZE = (24, 48)
    assert _resize(cfg, is_train=True) == _resize(cfg, is_train=False) == (24, 48)


def test_a_model_gets_the_resized_image_and_its_size_before(cfg):
    cfg.INPUT.FIXED_SIZE = (24, 48)
    image = np.zeros((*IMAGE.shape[:2], 3), dtype=np.uint8)
    image[:, :, 2] = 200
    record = make_model_input(image, build_resize(cfg, is_train=False))
    assert (record["height"], record["width"]) == image.shape[:2]
    assert record["image"].shape == (3, 24, 48) and record["image"].is_contiguous()
    assert record["image"].dtype == torch.float32
    assert record["image"].mean(dim=(1, 2)).tolist() == [0, 0, 200]


def test_heights_are_drawn_in_training_only(cfg):
    cfg.INPUT.FIXED_SIZE, cfg.INPUT.FIXED_HEIGHTS_TRAIN = (24, 48), (20, 22)
    assert isinstance(build_resize(cfg, is_train=True), StretchToRandomHeight)
    drawn = {_resize(cfg, is_train=True) for _ in range(60)}
    assert drawn == {(20, 48), (21, 48), (22, 48)}
    assert _resize(cfg, is_train=False) == (24, 48)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "expected"), [((3000, 4), (80, 1)), ((4, 3000), (1, 80)), ((1, 1), (40, 40))]
)
def test_no_side_of_a_thin_image_becomes_0(cfg, size, expected, num_channels, dtype):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40,), 40
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 80
    image = np.full((*size, num_channels), 77, dtype=dtype)[:, ::-1, ::-1]
    for is_train in (True, False):
        record = make_model_input(image, build_resize(cfg, is_train))
        assert record["image"].shape == (num_channels, *expected)
        assert (record["image"] - 77).abs().max() < 1e-3
    cfg.INPUT.FIXED_SIZE = (24, 48)
    assert make_model_input(image, build_resize(cfg, True))["image"].shape[1:] == (24, 48)


def test_a_crop_of_a_thin_image_leaves_a_pixel(cfg, tmp_path):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative", [0.2, 0.2]
    Image.new("RGB", (90, 1)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 1, "width": 90, "annotations": []}
    mapped = build_mapper(cfg, is_train=True)(record)
    assert mapped is not None and min(mapped["image"].shape) > 0


@pytest.mark.parametrize("key", ["FIXED_SIZE", "FIXED_HEIGHTS_TRAIN"])
@pytest.mark.parametrize("value", [(768,), (0, 5), (7.5, 8.0), (1, 2, 3)])
def test_bad_sizes_name_their_key(cfg, key, value):
    cfg.INPUT[key] = value
    with pytest.raises(ConfigError, match=rf"INPUT\.{key}"):
        build_resize(cfg, is_train=True)


@pytest.fixture
def record(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    boxes = [[0, 0, 30, 20], [40, 5, 9, 9], [5, 30, 12, 1], [40, 20, 3, 12]]
    annotations = [
        {
            "bbox": [x, y, w, h],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": index,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for index, (x, y, w, h) in enumerate(boxes)
    ]
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 40,
        "width": 60,
        "annotations": annotations,
    }


@pytest.mark.parametrize(
    "area,side,kept", [(0, 0, [0, 1, 2, 3]), (13, 0, [0, 1, 3]), (0, 10, [0, 2, 3]), (37, 10, [0])]
)
def test_small_objects_are_left_out_by_their_original_size(cfg, record, area, side, kept):
    cfg.INPUT.FIXED_SIZE = (160, 240)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_OBJECT_AREA, cfg.INPUT.MIN_OBJECT_SIDE = area, side
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_classes.tolist() == kept
    assert instances.gt_masks.tensor.shape[1:] == (160, 240)
    assert instances.gt_boxes.tensor[0].tolist() == [0, 0, 120, 80]


def test_images_without_a_large_object_have_empty_instances(cfg, record):
    cfg.INPUT.MIN_OBJECT_AREA = 10_000
    assert len(build_mapper(cfg, is_train=True)(record)["instances"]) == 0


def test_both_axes_are_stretched_on_their_own(cfg, record):
    cfg.INPUT.FIXED_SIZE = (80, 60)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapped = build_mapper(cfg, is_train=True)(record)
    assert mapped["image"].shape == (3, 80, 60)
    masks = mapped["instances"].gt_masks.tensor
    assert masks[0].nonzero().amax(dim=0).tolist() == [39, 29]  # 20 rows became 40
    mapped = build_mapper(cfg, is_train=False)(record)
    assert mapped["image"].shape == (3, 80, 60) and (mapped["height"], mapped["width"]) == (40, 60)


@pytest.mark.parametrize("overrides", [("INPUT.MAPPER", "polarmask"), ("INPUT.FIND_BORDERS", True)])
def test_the_loader_can_find_borders(cfg, record, overrides):
    cfg.INPUT.FIXED_SIZE = (80, 60)
    cfg.merge_from_list(list(overrides))
    mapper = build_mapper(cfg, is_train=True)
    instances = mapper(record)["instances"]
    expected = find_borders(instances.gt_masks.tensor)
    assert torch.equal(instances.gt_borders.points, expected.points)
    assert torch.equal(instances.gt_borders.centers, expected.centers)
    for annotation in record["annotations"]:
        annotation["iscrowd"] = 1
    assert len(mapper(record)["instances"].gt_borders) == 0
    assert "instances" not in build_mapper(cfg, is_train=False)(record)
