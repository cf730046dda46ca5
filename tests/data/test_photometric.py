"""The photometric distortion against Python's `colorsys`, and what it samples."""

import colorsys
from typing import Any

import cv2
import numpy as np
import pytest

from instancezoo.data.photometric import PhotometricDistort, distort

RGB = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
BGR = (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
NEUTRAL: dict[str, Any] = {
    "brightness": 0.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.0,
    "contrast_first": True,
    "conversions": RGB,
}


def make_pixels(dtype: str = "uint8", num_channels: int = 3) -> Any:
    pixels = np.random.default_rng(0).integers(40, 256, (5, 4, num_channels))
    return pixels.astype(dtype)


def shift_colors(pixel: Any, saturation: float, hue: float) -> tuple[float, float, float]:
    """The reference, for RGB in [0, 255]."""
    h, s, v = colorsys.rgb_to_hsv(*(float(value) for value in pixel))
    return colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize(("saturation", "hue"), [(1.4, 0.0), (0.6, 18.0), (1.0, -18.0), (0.0, 5.0)])
def test_colours_change_as_defined(contrast_first: bool, saturation: float, hue: float) -> None:
    pixels = make_pixels()
    changes = {"saturation": saturation, "hue": hue, "contrast_first": contrast_first}
    found = distort(pixels, **{**NEUTRAL, **changes, "brightness": -20.0, "contrast": 1.3})
    # Contrast changes neither hue nor saturation: both orders have the same exact result.
    expected = [
        np.multiply(shift_colors(pixel - 20.0, saturation, hue), 1.3)
        for pixel in pixels.reshape(-1, 3).astype(float)
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(-1, 3), expected, atol=0.01)


def test_contrast_comes_before_or_after_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def convert(pixels: Any, code: int) -> Any:
        seen.append(float(pixels.max()))
        return pixels

    monkeypatch.setattr(cv2, "cvtColor", convert)
    image = np.full((2, 2, 3), 100.0)
    for contrast_first in (True, False):
        changes = {"contrast": 0.5, "contrast_first": contrast_first}
        distort(image, **{**NEUTRAL, **changes})
    assert seen == [50, 50, 100, 100]


def test_nothing_changes_where_nothing_was_sampled() -> None:
    pixels = make_pixels()
    np.testing.assert_allclose(distort(pixels, **NEUTRAL), pixels, atol=0.01)


def test_both_channel_orders_give_the_same_colours() -> None:
    pixels = make_pixels()
    changes = {**NEUTRAL, "saturation": 1.3, "hue": 15.0}
    in_bgr = distort(pixels[:, :, ::-1], **{**changes, "conversions": BGR})
    np.testing.assert_array_equal(in_bgr[:, :, ::-1], distort(pixels, **changes))


def test_values_are_not_clipped() -> None:
    image = np.array([[[0, 0, 0, 0], [250, 250, 250, 250]]], dtype=np.uint8)
    lower = distort(image, **{**NEUTRAL, "brightness": -32.0})
    higher = distort(image, **{**NEUTRAL, "brightness": 32.0, "contrast": 1.5})
    assert (lower[0, 0] == -32).all()
    assert (higher[0, 1] == 423).all()


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 4), (5, 4, 6), (1, 1, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_every_image_of_the_reader_is_taken(shape: tuple[int, ...], dtype: str) -> None:
    augmentation = PhotometricDistort(prob=1.0)
    image = np.random.default_rng(0).integers(60, 200, shape).astype(dtype)
    before = image.copy()
    np.random.seed(4)  # noqa: NPY002
    changed = augmentation.get_transform(image).apply_image(image)
    assert changed.shape == shape and changed.dtype == np.float32
    assert np.isfinite(changed).all() and not np.array_equal(changed, image)
    np.testing.assert_array_equal(image, before)


def test_reversed_views_are_taken() -> None:
    image = make_pixels()
    np.random.seed(0)  # noqa: NPY002
    transform = PhotometricDistort(prob=1.0).get_transform(image)
    np.testing.assert_array_equal(
        transform.apply_image(image[::-1, ::-1]), transform.apply_image(image)[::-1, ::-1]
    )


def sample_changes(augmentation: PhotometricDistort, count: int) -> list[dict[str, Any]]:
    image = np.zeros((1, 1, 3), np.uint8)
    return [augmentation.get_transform(image).op.keywords for _ in range(count)]


def test_changes_are_sampled_in_their_ranges() -> None:
    np.random.seed(0)  # noqa: NPY002
    samples = sample_changes(PhotometricDistort(), 4000)
    limits = {
        "brightness": (-32, 32, 0),
        "contrast": (0.5, 1.5, 1),
        "saturation": (0.5, 1.5, 1),
        "hue": (-18, 18, 0),
    }
    for name, (low, high, neutral) in limits.items():
        values = np.array([sample[name] for sample in samples])
        changed = values[values != neutral]
        assert 0.45 < len(changed) / len(values) < 0.55
        assert low <= changed.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < changed.max() <= high
        assert abs(changed.mean() - neutral) < 0.05 * (high - low)
    assert 0.45 < np.mean([sample["contrast_first"] for sample in samples]) < 0.55


def test_a_seed_gives_the_same_changes() -> None:
    runs = []
    for seed in (7, 7, 8):
        np.random.seed(seed)  # noqa: NPY002
        runs.append(sample_changes(PhotometricDistort(), 5))
    assert runs[0] == runs[1] != runs[2]


def test_boxes_and_masks_stay() -> None:
    transform = PhotometricDistort(prob=1.0).get_transform(make_pixels())
    boxes, mask = np.array([[1.0, 2.0, 3.0, 4.0]]), np.eye(5, dtype=np.uint8)
    np.testing.assert_array_equal(transform.apply_box(boxes.copy()), boxes)
    np.testing.assert_array_equal(transform.apply_segmentation(mask), mask)
