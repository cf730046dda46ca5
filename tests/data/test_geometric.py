"""Augmentations that turn or scale the image."""

import numpy as np
import pytest

from instancezoo.data import RandomRotation90, RandomScale
from instancezoo.data.geometric import Rotation90Transform


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
