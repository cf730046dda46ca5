"""Values of any depth and number of channels, in the network's range."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.data.images import ImageError, ImageReader, read_image
from instancezoo.data.mappers import build_mapper
from instancezoo.data.pixel_range import PixelRange, reduce_to_8_bit
from instancezoo.errors import ConfigError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (20, 30), dtype=np.uint16)  # 12 bits in 16


def make_reader(num_channels: int = 3, pixel_range: Any = "type", format: str = "BGR"):
    return ImageReader(format, num_channels, PixelRange.parse(pixel_range))


def save(path: Path, values: np.ndarray) -> Path:
    """By suffix; TIFF of any number of channels."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif":
        kind = "rgb" if values.ndim == 3 and values.shape[2] == 3 else "minisblack"
        layout = {"planarconfig": "contig"} if values.ndim == 3 else {}
        tifffile.imwrite(path, values, photometric=kind, **layout)
    else:
        assert cv2.imwrite(str(path), values if values.ndim == 2 else values[:, :, ::-1])
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_12_bits_in_16_keep_their_levels(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, DEEP)
    by_type = make_reader()(path)
    assert by_type.dtype == np.uint8
    np.testing.assert_array_equal(by_type[:, :, 0], DEEP // 256)
    image = make_reader(pixel_range=(0, 4095))(path)
    assert (image.dtype, image.shape) == (np.float32, (20, 30, 3))
    np.testing.assert_allclose(image[:, :, 1], DEEP * (255 / 4095), rtol=1e-5)
    assert len(np.unique(image)) == len(np.unique(DEEP)) > 256
    low, high = int(DEEP.min()), int(DEEP.max())
    stretched = make_reader(1, "minmax")(path)[:, :, 0]
    np.testing.assert_allclose(stretched, (DEEP - low) * (255 / (high - low)), atol=1e-3)


@pytest.mark.parametrize("suffix", ["png", "ppm", "tif", "npy"])
def test_colours_of_16_bits_keep_their_levels(suffix: str, tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", deep)
    image = make_reader(pixel_range=(0, 65535))(path)
    np.testing.assert_allclose(image, deep[:, :, ::-1] / 257, rtol=1e-5)
    grey = make_reader(1, (0, 65535))(path)[:, :, 0]
    np.testing.assert_allclose(grey, deep @ [0.299, 0.587, 0.114] / 257, rtol=1e-4)
    by_type = make_reader(format="RGB")(path).astype(int)
    assert np.abs(by_type - deep // 256).max() <= (1 if suffix == "ppm" else 0)


def test_percentiles_leave_outliers_out(tmp_path: Path) -> None:
    values = np.linspace(1000, 2000, 10_000).reshape(100, 100).astype(np.uint16)
    values[0, :10] = 65535
    image = make_reader(1, "percentiles")(save(tmp_path / "a.tif", values))
    assert image.max() == 255 and image.min() == 0
    assert 120 < np.median(image) < 135
    narrow = make_reader(1, "percentiles 40 60")(tmp_path / "a.tif")
    assert (narrow == 0).mean() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("pixel_range", ["minmax", "percentiles", (0, 255), (-5, 5)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_8_bit_files_are_mapped_too(pixel_range: Any, num_channels: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY // 4 + 30)
    image = make_reader(num_channels, pixel_range)(path)
    assert image.dtype == np.float32 and image.shape[2] == num_channels
    if pixel_range == (0, 255):
        np.testing.assert_array_equal(image[:, :, 0], GREY // 4 + 30)
    elif pixel_range == "minmax":
        assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_up_to_1_are_not_black(suffix: str, dtype: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a.{suffix}", (GREY / 255).astype(dtype))
    image = read_image(path, "L")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, :, 0], GREY)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 1.003], [0, 255]),  # resampled
        ([-0.003, 0.5], [0, 128]),
        ([0.0, 17.9, 255.0], [0, 17, 255]),  # 8-bit values as floats
        ([0.0, 0.0], [0, 0]),
        ([np.nan, 1.0, np.inf], [0, 255, 0]),
    ],
)
def test_floats_by_type(values: list[float], expected: list[int]) -> None:
    assert reduce_to_8_bit(np.array(values), 64).tolist() == expected


@pytest.mark.parametrize("values", [[0.0, 3000.0], [-1.0, 1.0], [0.0, 2.5], [0.0, 255.5]])
def test_other_floats_name_the_key_and_a_value(values: list[float], tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", np.array([values]))
    text = f"a.npy.*INPUT.PIXEL_RANGE .\\({values[0]:g}, {values[1]:g}\\).*minmax"
    with pytest.raises(ImageError, match=text):
        read_image(path, "L")
    assert make_reader(1, "minmax")(path).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("pixel_range", ["type", "minmax", "percentiles"])
def test_without_a_finite_value_there_is_no_image(pixel_range: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", np.full((3, 3), np.nan))
    with pytest.raises(ImageError, match=r"a\.npy.*no pixel has a finite value"):
        make_reader(1, pixel_range)(path)


def test_pixels_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    values = np.array([[np.nan, 10.0, 20.0, np.inf, 15.0, -np.inf]])
    path = save(tmp_path / "a.npy", values)
    for pixel_range in ("minmax", (10, 20)):
        image = make_reader(1, pixel_range)(path)
        assert image.ravel().tolist() == [0, 0, 255, 0, 127.5, 0]


@pytest.mark.parametrize("pixel_range", ["minmax", "percentiles", (3, 4)])
def test_a_flat_image_is_finite(pixel_range: Any, tmp_path: Path) -> None:
    image = make_reader(1, pixel_range)(save(tmp_path / "a.npy", np.full((3, 3), 7, np.int32)))
    assert np.isfinite(image).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint32", "int64", ">u2", ">f4"])
@pytest.mark.parametrize("pixel_range", ["type", "minmax", "percentiles", (0, 1)])
def test_every_number_is_read(dtype: str, pixel_range: Any, tmp_path: Path) -> None:
    values = (GREY > 100) if dtype == "bool" else (GREY / 255 if "f" in dtype else GREY // 2)
    path = save(tmp_path / "a.npy", values.astype(dtype))
    image = make_reader(3, pixel_range)(path)
    assert image.shape == (20, 30, 3)
    assert image.max() > 100 or (dtype, pixel_range) == (">u2", "type")
    assert image.dtype == (np.uint8 if pixel_range == "type" else np.float32)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("num_channels", [2, 4, 5, 7])
def test_other_numbers_of_channels_stay_as_they_are(
    suffix: str, dtype: str, num_channels: int, tmp_path: Path
) -> None:
    values = RNG.integers(0, 256, (20, 30, num_channels))
    scale = {"uint8": 1, "uint16": 257}.get(dtype, 1 / 255)
    path = save(tmp_path / f"a.{suffix}", (values * scale).astype(dtype))
    image = make_reader(num_channels)(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, values)
    whole = make_reader(num_channels, (0, 255 * scale))(path)
    np.testing.assert_allclose(whole, values, atol=1e-3)
    wrong = num_channels + 10
    text = rf"a\.{suffix}.*{num_channels} channels.*MODEL\.PIXEL_MEAN has {wrong} entries"
    with pytest.raises(ImageError, match=text):
        make_reader(wrong)(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("num_channels", [1, 2, 3, 4, 5])
def test_channels_of_8_bit_images(mode: str, num_channels: int, tmp_path: Path) -> None:
    image = Image.fromarray(COLOR).convert(mode)
    image.save(tmp_path / "a.tif")
    own = {"L": 1, "1": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    reader = make_reader(num_channels)
    if num_channels in (1, 3):
        expected = read_image(tmp_path / "a.tif", "L" if num_channels == 1 else "BGR")
        np.testing.assert_array_equal(reader(tmp_path / "a.tif"), expected)
    elif num_channels == own:
        np.testing.assert_array_equal(reader(tmp_path / "a.tif"), np.asarray(image))
    else:
        with pytest.raises(ImageError, match=rf"{own} channels.*{num_channels} entries"):
            reader(tmp_path / "a.tif")


def test_alpha_of_deep_images_is_left_out(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    image = make_reader(3, (0, 65535), "RGB")(tmp_path / "a.tif")
    np.testing.assert_allclose(image, deep[:, :, :3] / 257, rtol=1e-5)
    assert cv2.imwrite(str(tmp_path / "a.png"), deep[:, :, [2, 1, 0, 3]])
    image = make_reader(3, (0, 65535), "RGB")(tmp_path / "a.png")
    np.testing.assert_allclose(image, deep[:, :, :3] / 257, rtol=1e-5)
    whole = make_reader(4, (0, 65535), "RGB")(tmp_path / "a.png")
    np.testing.assert_allclose(whole, deep / 257, rtol=1e-5)


def test_a_format_of_so_many_channels_converts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOR)
    np.testing.assert_array_equal(make_reader(4, format="RGBA")(path)[:, :, :3], COLOR)


@pytest.mark.parametrize(
    "values", [np.array(["text"]), np.ones((2, 3), complex), np.ones(3), np.ones((2, 0)), 1.0]
)
def test_other_arrays_are_refused(values: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ImageError, match=r"a\.npy"):
        read_image(tmp_path / "a.npy", "L")


def test_no_array_runs_code(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([print, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"a\.npy"):
        read_image(tmp_path / "a.npy", "L")


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.npy"):
        values = make_reader().read_values(save(tmp_path / name, DEEP))
        np.testing.assert_array_equal(values.squeeze(), DEEP)


@pytest.mark.parametrize(("format", "num_channels"), [("BGR", 3), ("RGB", 3), ("BGR", 1)])
def test_pictures_to_draw_on(format: str, num_channels: int, tmp_path: Path) -> None:
    reader = make_reader(num_channels, format=format)
    path = save(tmp_path / "a.png", COLOR)
    expected = COLOR if num_channels == 3 else np.repeat(read_image(path, "L"), 3, axis=2)
    np.testing.assert_array_equal(reader.to_rgb(reader(path)), expected)
    np.testing.assert_array_equal(reader.to_rgb(reader.convert_rgb(COLOR)), expected)


@pytest.mark.parametrize("num_channels", [2, 4, 5])
def test_pictures_of_other_channels_show_the_first(num_channels: int) -> None:
    values = RNG.random((4, 5, num_channels), dtype=np.float32) * 255
    picture = make_reader(num_channels).to_rgb(values)
    assert (picture.dtype, picture.shape) == (np.uint8, (4, 5, 3))
    shown = values[:, :, : 1 if num_channels == 2 else 3]
    assert np.abs(picture - shown).max() <= 0.5
    with pytest.raises(ImageError, match="3 channels"):
        make_reader(num_channels).convert_rgb(COLOR)


@pytest.mark.parametrize("num_channels", [1, 2, 4, 5])
def test_mappers_resize_and_flip_every_number_of_channels(
    num_channels: int, tmp_path: Path
) -> None:
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [100.0] * num_channels
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (10,), 40
    # Smooth, so that another size has the same values; a channel that looks like alpha is 0.
    values = np.linspace(40, 200, 30, dtype=np.uint8)[None, :, None].repeat(20, 0)
    values = values.repeat(num_channels, 2) + np.arange(num_channels, dtype=np.uint8)
    if num_channels > 1:
        values[:, :, -1] = 0
    save(tmp_path / "a.npy", values)
    record = {"file_name": str(tmp_path / "a.npy"), "height": 20, "width": 30, "annotations": []}
    for is_train, shape in ((True, (10, 15)), (False, (40, 60))):
        image = build_mapper(cfg, is_train)(record)["image"]
        assert image.shape == (num_channels, *shape)
        expected = torch.from_numpy(values).float().mean(dim=(0, 1))
        assert torch.allclose(image.float().mean(dim=(1, 2)), expected, atol=1)


def test_floats_are_resized_as_8_bit_images_are(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 8
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    record = {"file_name": str(save(tmp_path / "a.png", noise))}
    by_type = build_mapper(cfg, is_train=False)(dict(record))["image"]
    cfg.INPUT.PIXEL_RANGE = (0, 255)
    floats = build_mapper(cfg, is_train=False)(dict(record))["image"]
    assert floats.dtype == torch.float32
    assert (floats - by_type.float()).abs().max() < 1.5


@pytest.mark.parametrize("value", ["nonsense", "(5, 1)", "percentiles 99 1", "percentiles 0 101",
                                   "minmax 3", "1 2 3", "nan 1", (1, None)])  # fmt: skip
def test_bad_ranges_name_the_key(value: Any) -> None:
    cfg = get_cfg()
    cfg.INPUT.PIXEL_RANGE = value
    with pytest.raises(ConfigError, match=r"INPUT\.PIXEL_RANGE"):
        build_mapper(cfg, is_train=False)


def test_mean_and_deviation_need_one_length() -> None:
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN = [1.0]
    with pytest.raises(ConfigError, match=r"MODEL\.PIXEL_STD has 3 .*MODEL\.PIXEL_MEAN has 1"):
        build_mapper(cfg, is_train=True)
