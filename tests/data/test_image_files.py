"""Headers and pixels of files: one EXIF rule for all formats, one limit, no page is lost."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image as read_image_of_detectron2
from PIL import Image

from instancezoo.data.coco_entries import find_file_problem
from instancezoo.data.coco_values import Problem
from instancezoo.data.image_files import read_size
from instancezoo.data.images import ImageError, ImageReader, read_image
from instancezoo.data.pillow_files import TooManyPixelsError
from instancezoo.data.pixel_range import PixelRange

HEIGHT, WIDTH = 24, 40
# Four flat quarters: they survive compression with losses.
QUARTERS = np.kron([[20, 90], [160, 230]], np.ones((HEIGHT // 2, WIDTH // 2))).astype(np.uint8)
FORMATS = ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"]


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image that a viewer shows for an EXIF orientation."""
    return {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.T,
        6: image[::-1].T,
        7: image[::-1, ::-1].T,
        8: image.T[::-1],
    }[orientation]


def make_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def check_upright(path: Path, orientation: int, tolerance: int = 0) -> None:
    """Header, reader and check of the data set agree, and the pixels are right."""
    expected = turn(QUARTERS, orientation)
    height, width = expected.shape
    pixels = read_image(path, "L")[:, :, 0].astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance
    assert read_size(path) == (width, height)
    entry = {"file_name": path.name, "width": width, "height": height}
    assert find_file_problem(str(path.parent), entry) is None
    if width != height:
        swapped = entry | {"width": height, "height": width}
        assert find_file_problem(str(path.parent), swapped) is Problem.WRONG_SIZE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_turned_once(format: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format.lower()}"
    # Flat colours in RGB: AVIF and WebP know no grey.
    image = Image.fromarray(QUARTERS).convert("RGB")
    image.save(path, format=format, exif=make_exif(orientation))
    check_upright(path, orientation, tolerance=0 if format in ("PNG", "TIFF") else 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float16"])
def test_tiff_of_any_depth_is_turned_once(orientation: int, dtype: str, tmp_path: Path) -> None:
    scale = {"uint8": 1, "uint16": 257}.get(dtype, 1 / 255)
    path = tmp_path / "a.tif"
    tags = [(274, "H", 1, orientation, False)]
    tifffile.imwrite(path, (QUARTERS * np.float64(scale)).astype(dtype), extratags=tags)
    check_upright(path, orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_once(orientation: int, tmp_path: Path) -> None:
    deep = np.stack([QUARTERS.astype(np.uint16) * 257] * 3, axis=2)
    _, encoded = cv2.imencode(".png", deep)
    chunk = _chunk(b"eXIf", _exif_bytes(orientation))
    path = tmp_path / "a.png"
    path.write_bytes(_insert_before(encoded.tobytes(), b"IDAT", chunk))
    check_upright(path, orientation)
    pixels = ImageReader("RGB", 3, PixelRange.parse((0, 65535)))(path)
    np.testing.assert_array_equal(pixels[:, :, 1], turn(QUARTERS, orientation))


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _insert_before(png: bytes, before: bytes, chunk: bytes) -> bytes:
    at = png.index(before) - 4
    return png[:at] + chunk + png[at:]


def _exif_bytes(orientation: int) -> bytes:
    return make_exif(orientation).tobytes().removeprefix(b"Exif\0\0")


def _raw_profile(orientation: int) -> bytes:
    content = b"Exif\0\0" + _exif_bytes(orientation)
    text = f"\nexif\n{len(content):8d}\n{content.hex()}\n"
    return b"Raw profile type exif\0" + text.encode()


def _xmp(orientation: int) -> bytes:
    return b"XML:com.adobe.xmp\0\0\0\0\0" + f'<x tiff:Orientation="{orientation}"/>'.encode()


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (b"eXIf", _exif_bytes),
        (b"tEXt", _raw_profile),
        (b"zTXt", lambda n: _raw_profile(n).replace(b"exif\0", b"exif\0\0", 1)),
        (b"iTXt", _xmp),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_of_png_holds_wherever_it_stands(
    before: bytes, name: bytes, make: Callable[[int], bytes], orientation: int, tmp_path: Path
) -> None:
    content = make(orientation)
    if name == b"zTXt":
        key, text = content.split(b"\0\0", 1)
        content = key + b"\0\0" + zlib.compress(text)
    buffer = io.BytesIO()
    Image.fromarray(QUARTERS).save(buffer, format="PNG")
    path = tmp_path / "a.png"
    path.write_bytes(_insert_before(buffer.getvalue(), before, _chunk(name, content)))
    check_upright(path, orientation)
    np.testing.assert_array_equal(
        read_image(path, "RGB"), read_image_of_detectron2(str(path), "RGB")
    )


def test_the_check_of_a_png_decodes_no_pixel(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(QUARTERS).save(buffer, format="PNG")
    png = bytearray(_insert_before(buffer.getvalue(), b"IEND", _chunk(b"eXIf", _exif_bytes(6))))
    at = png.index(b"IDAT") + 4
    png[at : at + 8] = b"no zlib!"
    (tmp_path / "a.png").write_bytes(png)
    assert read_size(tmp_path / "a.png") == (HEIGHT, WIDTH)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png", "L")


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    Image.fromarray(QUARTERS).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    check_upright(tmp_path / "a.png", 1)


def test_the_limit_of_pixels_is_a_key_and_its_message_says_so(tmp_path: Path) -> None:
    files = {"a.png": Image.fromarray(QUARTERS), "a.tif": Image.fromarray(QUARTERS)}
    for name, image in files.items():
        image.save(tmp_path / name)
    np.save(tmp_path / "a.npy", QUARTERS)
    tifffile.imwrite(tmp_path / "b.tif", QUARTERS.astype(np.uint16))
    for name in ("a.png", "a.tif", "a.npy", "b.tif"):
        small, large = (ImageReader("L", 1, max_pixels=n) for n in (959, 960))
        with pytest.raises(TooManyPixelsError, match=rf"{name}.*40 x 24.*INPUT\.MAX_PIXELS is 959"):
            small(tmp_path / name)
        assert large(tmp_path / name).shape == (HEIGHT, WIDTH, 1)
        entry = {"file_name": name, "width": WIDTH, "height": HEIGHT}
        assert find_file_problem(str(tmp_path), entry, 959) is Problem.TOO_MANY_PIXELS
        assert find_file_problem(str(tmp_path), entry, 960) is None
    assert "INPUT.MAX_PIXELS" in Problem.TOO_MANY_PIXELS


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pillows_own_limit_is_neither_in_the_way_nor_changed(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(QUARTERS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in (0, 10**6):
            reader = ImageReader("L", 1, max_pixels=limit)
            threads = [threading.Thread(target=reader, args=(path,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert reader(path).shape == (HEIGHT, WIDTH, 1)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(TooManyPixelsError):
        read_image(path, "L")
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("num_channels", [1, 2, 3, 4, 5])
def test_pages_are_channels_or_an_error_with_their_number(
    dtype: str, num_channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "stack.tif"
    pages = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH)).astype(dtype)
    tifffile.imwrite(path, pages, photometric="minisblack")
    reader = ImageReader("BGR", num_channels, PixelRange.parse((0, 255)))
    if num_channels == 4:
        np.testing.assert_array_equal(reader(path), np.moveaxis(pages, 0, 2))
        return
    with pytest.raises(ImageError, match=r"stack\.tif.*4 pages"):
        reader(path)
    with pytest.raises(ImageError, match=r"4 pages"):
        read_image(path)
    assert read_size(path) == (WIDTH, HEIGHT)


def test_pages_of_several_channels_and_of_other_sizes_are_named(tmp_path: Path) -> None:
    colors = np.zeros((2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "colors.tif", colors, photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        writer.write(QUARTERS, metadata=None)
        writer.write(QUARTERS[:-2], metadata=None)
    for name in ("colors.tif", "sizes.tif"):
        with pytest.raises(ImageError, match=rf"{name}.*2 pages"):
            ImageReader()(tmp_path / name)
    with pytest.raises(ImageError, match="2 pages of 3 channels"):
        ImageReader("BGR", 2)(tmp_path / "colors.tif")


def test_arrays_that_tifffile_spreads_over_pages_are_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 5), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert read_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(ImageReader("BGR", 5)(tmp_path / "a.tif"), values // 256)


def test_thumbnails_and_pyramids_are_no_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(QUARTERS, subifds=1, metadata=None)
        writer.write(QUARTERS[::2, ::2], subfiletype=1, metadata=None)
        writer.write(QUARTERS[::8, ::8], metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "L")[:, :, 0], QUARTERS)


def test_masks_are_no_pages_and_parts_left_out_are_black(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        values = np.zeros((64, 64), np.uint16)
        values[:16, :16] = 65535
        writer.write(values, tile=(16, 16), metadata=None)
        writer.write(np.ones((64, 64), bool), subfiletype=4, metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tags = tiff.pages[0].tags
        places = [tags[name].valueoffset for name in ("TileOffsets", "TileByteCounts")]
        sizes = [tags[name].valuebytecount // 16 for name in ("TileOffsets", "TileByteCounts")]
    for place, size in zip(places, sizes, strict=True):
        content[place + size : place + 16 * size] = bytes(15 * size)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "L")[:, :, 0], values // 256)


def test_animations_stay_their_first_frame(tmp_path: Path) -> None:
    first, second = (Image.fromarray(q).convert("P") for q in (QUARTERS, 255 - QUARTERS))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif", "L")[:, :, 0], QUARTERS)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_is_an_error(dtype: str, compression: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(dtype)
    tifffile.imwrite(path, noise, compression=compression)
    path.write_bytes(path.read_bytes()[:-40])
    for num_channels in (1, 3):
        with pytest.raises(ImageError, match=r"a\.tif"):
            ImageReader("BGR", num_channels)(path)


def test_a_missing_codec_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = QUARTERS.astype(np.uint16) * 256
    # Pillow reads this one, in whichever way it is compressed.
    Image.fromarray(deep).save(tmp_path / "grey.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.tif", "L")[:, :, 0], QUARTERS)
    tifffile.imwrite(tmp_path / "five.tif", np.stack([deep] * 5), planarconfig="separate")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", fail)
    with pytest.raises(ImageError, match=r"five\.tif.*pip install imagecodecs"):
        ImageReader("BGR", 5)(tmp_path / "five.tif")


def test_white_is_zero_where_the_file_says_so(tmp_path: Path) -> None:
    for dtype, scale in (("uint8", 1), ("uint16", 257)):
        values = (255 - QUARTERS).astype(dtype) * scale
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "L")[:, :, 0], QUARTERS)
