"""INPUT.FIXED_SIZE_ANTIALIAS: the resize of OpenCV, in the mapper and in the model."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from instancezoo.config import get_cfg, load_cfg
from instancezoo.data.mappers import build_mapper
from instancezoo.data.transforms import (
    ResizeTransform,
    adapt_to_masks,
    build_resize,
    make_model_input,
)
from instancezoo.modeling.input_size import stretch_image
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

SIZES = [(30, 70), (55, 55), (90, 61), (128, 64), (64, 96), (1, 1), (200, 300)]


def make_picture(dtype: str = "uint8", num_channels: int = 3) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, num_channels))
    return pixels.astype(dtype)


@pytest.fixture
def cfg() -> Any:
    cfg = get_cfg()
    cfg.INPUT.FIXED_SIZE, cfg.INPUT.FIXED_SIZE_ANTIALIAS = (55, 50), False
    return cfg


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("num_channels", [1, 3, 6])
def test_images_are_resized_as_by_opencv(
    size: tuple[int, int], dtype: str, num_channels: int
) -> None:
    image = make_picture(dtype, num_channels)
    found = ResizeTransform(64, 96, *size, antialias=False).apply_image(image)
    expected = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert found.dtype == np.float32 and found.shape == (*size, num_channels)
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-2)


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_resized_as_images_and_rounded(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:64, :96]
    mask = ((x - 50) ** 2 + (y - 30) ** 2 < 400).astype(np.uint8)
    transforms = T.TransformList([ResizeTransform(64, 96, *size, antialias=False)])
    found = adapt_to_masks(transforms).apply_segmentation(mask)
    assert found.dtype == np.uint8
    # OpenCV's own uint8 result loses bits of values this small: up to 0.7 becomes 0.
    shares = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    is_clear = np.abs(shares - 0.5) > 1e-3
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(found[is_clear], (shares > 0.5)[is_clear])
    # Labels are not numbers to interpolate.
    labels = transforms.apply_segmentation(mask * 7)
    assert set(np.unique(labels)) <= {0, 7}


def test_mapper_predictor_and_model_read_one_key(cfg: Any) -> None:
    image = make_picture()
    resized = make_model_input(image, build_resize(cfg, is_train=False))["image"]
    record = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    assert torch.equal(stretch_image(record, (55, 50), antialias=False)["image"], resized)
    with_antialias = stretch_image(record, (55, 50))["image"]
    assert not torch.allclose(with_antialias, resized, atol=5)
    tiny = get_tiny_config("solo/solo_tiny", ["INPUT.FIXED_SIZE", (64, 96)])
    seen = []
    for tiny.INPUT.FIXED_SIZE_ANTIALIAS in (True, False):
        model = build_seeded_model(tiny).eval()
        model.preprocess = lambda batch, run=model.preprocess: seen.append(batch) or run(batch)
        batch = [make_input(90, 130, [])]
        with torch.no_grad():
            model(batch)
        expected = stretch_image(batch[0], (64, 96), tiny.INPUT.FIXED_SIZE_ANTIALIAS)
        assert torch.equal(seen[-1][0]["image"], expected["image"])
    assert not torch.equal(seen[0][0]["image"], seen[1][0]["image"])


def test_training_maps_images_and_polygons_as_pixels(cfg: Any, tmp_path: Path) -> None:
    image = make_picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    triangle = [10, 5, 80, 20, 30, 60]
    annotation = {
        "bbox": [10.0, 5.0, 70.0, 55.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [triangle],
    }
    record = {"file_name": str(tmp_path / "a.png"), "height": 64, "width": 96}
    record["annotations"] = [annotation]
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.FORMAT, cfg.MODEL.MASK_ON = "none", "RGB", True
    mapped = build_mapper(cfg, is_train=True)(record)
    whole = cfg.clone()
    whole.INPUT.FIXED_SIZE = (64, 96)
    mask = build_mapper(whole, is_train=True)(record)["instances"].gt_masks.tensor[0].numpy()
    assert abs(mask.sum() - 1775) < 100  # half the cross product of two sides
    expected = cv2.resize(mask.astype(np.float32), (50, 55), interpolation=cv2.INTER_LINEAR)
    found = mapped["instances"].gt_masks.tensor[0].numpy()
    is_clear = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal(found[is_clear], (expected >= 0.5)[is_clear])
    pixels = cv2.resize(image.astype(np.float32), (50, 55), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(mapped["image"].permute(1, 2, 0), pixels, atol=1e-2)
    boxes = mapped["instances"].gt_boxes.tensor
    expected = [10 * 50 / 96, 5 * 55 / 64, 80 * 50 / 96, 60 * 55 / 64]
    np.testing.assert_allclose(boxes[0], expected, rtol=1e-6)


def test_random_heights_follow_the_key(cfg: Any) -> None:
    cfg.INPUT.FIXED_HEIGHTS_TRAIN = (40, 40)
    resize = build_resize(cfg, is_train=True)
    assert resize.get_transform(make_picture()).apply_image(make_picture()).dtype == np.float32


def test_the_default_is_pillows_resize(cfg: Any) -> None:
    cfg.INPUT.FIXED_SIZE_ANTIALIAS = True
    image = make_picture()
    found = build_resize(cfg, is_train=True).get_transform(image).apply_image(image)
    expected = Image.fromarray(image).resize((50, 55), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_the_key_takes_both_values() -> None:
    for value in (True, False):
        cfg = load_cfg("", ["INPUT.FIXED_SIZE_ANTIALIAS", value])
        assert cfg.INPUT.FIXED_SIZE_ANTIALIAS is value
