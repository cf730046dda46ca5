"""Augmentations that turn or scale the image."""

import numpy as np
import pycocotools.mask as mask_codec
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from instancezoo import model_zoo
from instancezoo.data import RandomRotation90, RandomScale
from instancezoo.data.geometric import Rotation90Transform
from instancezoo.data.mappers import build_mapper
from instancezoo.doctor.context import InputSize


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_points_and_boxes_turn_with_the_pixels(turns):
    image = np.zeros((7, 12, 3), np.uint8)
    image[2:4, 5:10] = 9
    transform = Rotation90Transform(turns, 7, 12)
    turned = transform.apply_image(image)
    assert turned.shape == ((7, 12, 3) if turns % 2 == 0 else (12, 7, 3))
    x0, y0, x1, y1 = transform.apply_box(np.array([[5, 2, 10, 4]]))[0].astype(int)
    expected = np.zeros_like(turned)
    expected[y0:y1, x0:x1] = 9
    assert np.array_equal(turned, expected)
    mask = transform.apply_segmentation(image[..., 0])
    assert np.array_equal(mask, expected[..., 0]) and mask.flags.c_contiguous
    back = transform.inverse()
    assert np.array_equal(back.apply_image(turned), image)
    points = np.array([[0.5, 1.5], [11.0, 7.0]])
    assert np.allclose(back.apply_coords(transform.apply_coords(points)), points)


def test_all_turns_are_sampled():
    np.random.seed(0)  # noqa: NPY002
    image = np.zeros((4, 6, 3), np.uint8)
    turns = [getattr(RandomRotation90().get_transform(image), "turns", 0) for _ in range(200)]
    assert set(turns) == {0, 1, 2, 3} and min(map(turns.count, range(4))) > 20
    never = RandomRotation90(prob=0)
    assert not any(hasattr(never.get_transform(image), "turns") for _ in range(20))


def test_scales_are_sampled_and_bounded():
    np.random.seed(0)  # noqa: NPY002
    image = np.zeros((40, 60, 3), np.uint8)
    sizes = [RandomScale(scale=(0.5, 1.5)).get_transform(image) for _ in range(100)]
    heights, widths = ([getattr(size, side) for size in sizes] for side in ("new_h", "new_w"))
    assert 20 <= min(heights) < 25 and 55 < max(heights) <= 60
    ratios = np.array(widths) / np.array(heights)
    assert np.allclose(ratios, 1.5, atol=0.05)
    thin = RandomScale(scale=(0.05, 0.05)).get_transform(np.zeros((1, 9, 3), np.uint8))
    assert thin.apply_image(np.zeros((1, 9, 3), np.uint8)).shape == (1, 1, 3)
    large = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (5000, 5000, 3))
    unchanged = RandomScale(scale=(3, 3)).get_transform(large)
    assert (unchanged.new_h, unchanged.new_w) == (5000, 5000)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomRotation90(prob=2),
        lambda: RandomScale(scale=(1.5, 0.5)),
        lambda: RandomScale(scale=0.5),
        lambda: RandomScale(scale=(0, 1)),
    ],
)
def test_bad_arguments(build):
    with pytest.raises(ValueError, match="must be"):
        build()


@pytest.fixture
def record(tmp_path):
    """A polygon, an RLE mask and a crowd; red, green and blue of the image are their pixels."""
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = [(4, 6, 20, 13), (30, 2, 52, 9), (33, 20, 60, 40)]
    annotations = []
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1, channel] = 255
        mask = np.asfortranarray((image[..., channel] > 0).astype(np.uint8))
        corners = [x0, y0, x1, y0, x1, y1, x0, y1]
        annotations.append(
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": int(channel == 2),
                "segmentation": mask_codec.encode(mask) if channel else [corners],
            }
        )
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray((image > 0).argmax(axis=2).astype(np.uint8)).save(tmp_path / "map.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "map.png"),
        "height": 40,
        "width": 60,
        "annotations": annotations,
    }


def _build_mapper(*overrides):
    keys = [*overrides, "INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", False]
    cfg = model_zoo.get_config("unet_boundary/unet_boundary_plain", keys)
    return build_mapper(cfg, is_train=True)


def test_masks_crowds_and_maps_turn_with_the_image(record):
    mapper = _build_mapper("INPUT.AUGMENTATIONS", [{"RandomRotation90": {"prob": 1.0}}])
    np.random.seed(1)  # noqa: NPY002
    shapes = set()
    for _ in range(12):
        found = mapper(record)
        image, instances = found["image"] > 0, found["instances"]
        shapes.add(tuple(image.shape[1:]))
        assert instances.gt_is_crowd.tolist() == [False, False, True]
        assert (instances.gt_masks.tensor == image).all()
        tight = instances.gt_masks.get_bounding_boxes().tensor
        assert (instances.gt_boxes.tensor == tight).all()
        assert (found["sem_seg"] == image.int().argmax(dim=0)).all()
    assert shapes == {(40, 60), (60, 40)}


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_the_bowls_schedule_keeps_the_sampled_scale(record, scale):
    """Without a resize after it, which would undo it."""
    found = _build_mapper("INPUT.AUGMENTATIONS", [{"RandomScale": {"scale": [scale, scale]}}])
    assert tuple(found(record)["image"].shape[1:]) == (40 * scale, 60 * scale)


def test_a_shortest_edge_of_zero_is_no_resize():
    sizes = np.array([[40, 60], [1, 1000]])
    assert np.array_equal(InputSize(0, 1333).resize(sizes), sizes)
