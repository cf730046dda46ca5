"""Odd and damaged pictures from a seed: each is read as it should be, or refused in one line.

Each case is a number; FUZZ_CASES sets how many run (default 60).
"""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.data.coco_entries import find_file_problem
from instancezoo.data.coco_values import Problem
from instancezoo.data.image_files import read_size
from instancezoo.data.images import ImageError, ImageReader, read_image
from instancezoo.data.mappers import InstanceMapper
from instancezoo.data.pixel_range import PixelRange

NUM_CASES = int(os.environ.get("FUZZ_CASES", "60"))
MAX_PIXELS = 10**6
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "PPM", "JPEG2000", "TGA", "ICO",
           "PCX", "SGI", "DDS", "QOI", "MPO")  # fmt: skip
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
TIFF_COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
SIDES = (1, 2, 3, 7, 16, 33, 300)
DTYPES = ("u1", "u2", "<i2", ">u2", "u4", "i8", "f2", "f4", ">f4", "f8", "?", "c8", "S3", "O")
RANGES = ("type", "minmax", "percentiles", "percentiles 1 99", (0, 4095), (-1, 1))

Rng = np.random.Generator
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    # Pillow's own, in C: a damaged file is a line on the terminal at most.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def choose(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def make_values(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind in "SOc":
        return np.ones(shape).astype(dtype)
    high = choose(rng, (2, 16, 256, 4096, 65536))
    values = rng.integers(0, high, shape).astype(np.float64)
    if kind == "f":
        values /= choose(rng, (1, high, 100))
        if values.size and rng.random() < 0.3:
            values.flat[0] = choose(rng, (np.nan, np.inf, -np.inf, 1e30, -5))
    return values.astype(dtype)


def make_pillow_file(rng: Rng, height: int, width: int) -> bytes:
    mode, format = choose(rng, MODES), choose(rng, FORMATS)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": "u2", "I": "i4", "F": "f4"}[mode]
        image = Image.fromarray(make_values(rng, (height, width), dtype))
    else:
        image = Image.fromarray(make_values(rng, (height, width, 3), "u1")).convert(mode)
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["exif"] = Image.Exif()
        options["exif"][274] = int(rng.integers(0, 10))
    if format == "TIFF":
        options["compression"] = choose(rng, TIFF_COMPRESSIONS)
    if rng.random() < 0.15 and format != "AVIF":  # its encoder of animations may crash
        options |= {"save_all": True, "append_images": [image.copy()]}
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=format, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # not in this mode or size
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def make_tiff(rng: Rng, height: int, width: int) -> bytes:
    num_channels = choose(rng, (1, 2, 3, 4, 5, 7))
    shape = choose(rng, ((height, width), (height, width, num_channels), (num_channels, height,
                         width), (2, height, width, 3)))  # fmt: skip
    dtype = choose(rng, [d for d in DTYPES if np.dtype(d).kind not in "SO"])
    options: dict[str, Any] = {
        "photometric": choose(rng, (None, "minisblack", "miniswhite", "rgb")),
        "planarconfig": choose(rng, (None, "contig", "separate")),
        "compression": choose(rng, (None, None, "zlib")),
        "extratags": [(274, "H", 1, int(rng.integers(0, 10)), False)],
        "bigtiff": bool(rng.random() < 0.2),
        "tile": choose(rng, (None, None, (16, 16))),
    }
    buffer = io.BytesIO()
    try:
        tifffile.imwrite(buffer, make_values(rng, shape, dtype), **options)
    except (ValueError, KeyError, TypeError, RuntimeError):  # options that do not go together
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, make_values(rng, (height, width), "u2"))
    return buffer.getvalue()


def make_numpy_file(rng: Rng, height: int, width: int) -> bytes:
    num_channels = choose(rng, (0, 1, 2, 3, 4, 5, 7))
    shapes = ((height, width), (height, width, num_channels), (height,), (2, height, width, 3), ())
    values = make_values(rng, choose(rng, shapes), choose(rng, DTYPES))
    if values.ndim > 1 and rng.random() < 0.3:
        values = np.asfortranarray(values)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    content = buffer.getvalue()
    if rng.random() < 0.2:  # a header of more values than there are
        content = content.replace(b"(", b"(9999999, ", 1)
    return content


def damage(rng: Rng, content: bytes) -> bytes:
    """Leave as it is, cut off, flip bytes (more often of the header), or change two blocks."""
    kind = rng.random()
    if kind < 0.4 or len(content) < 4:
        return content
    if kind < 0.55:
        return content[: int(rng.integers(len(content)))]
    damaged = bytearray(content)
    if kind < 0.9:
        reach = len(content) if rng.random() < 0.5 else min(len(content), 256)
        for _ in range(int(rng.integers(1, 6))):
            damaged[int(rng.integers(reach))] = int(rng.integers(256))
        return bytes(damaged)
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 64))
    return bytes(damaged[:start] + damaged[start + length :])


def make_picture(seed: int) -> tuple[Rng, bytes]:
    """The content of a file, and the generator for what else the case chooses."""
    rng = np.random.default_rng([7, seed])
    height, width = choose(rng, SIDES), choose(rng, SIDES)
    make = choose(rng, (make_pillow_file, make_pillow_file, make_tiff, make_tiff, make_numpy_file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rng, damage(rng, make(rng, height, width))


def call(function: Callable[[], Any], path: Path) -> Any:
    """The result, or None after an `ImageError` of one line that names the file."""
    try:
        return function()
    except ImageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_a_picture_is_read_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    rng, content = make_picture(seed)
    path = tmp_path / choose(rng, ("a.png", "a.tif", "a.npy", "a.jpg", "a"))
    path.write_bytes(content)
    num_channels = choose(rng, (1, 2, 3, 3, 4, 5))
    pixel_range = PixelRange.parse(choose(rng, RANGES))
    reader = ImageReader(choose(rng, ("BGR", "RGB")), num_channels, pixel_range, MAX_PIXELS)
    before = Image.MAX_IMAGE_PIXELS

    size = call(lambda: read_size(path, MAX_PIXELS), path)
    for read in (reader, lambda p: read_image(p, "BGR"), lambda p: read_image(p, "L")):
        image = call(lambda read=read: read(path), path)
        if image is None:
            continue
        is_float = read is reader and (pixel_range.kind != "type" or num_channels not in (1, 3))
        assert image.dtype == (np.float32 if is_float else np.uint8)
        assert image.shape[2] == (num_channels if read is reader else image.shape[2])
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 255
        assert size is not None and image.shape[:2] == size[::-1]

    width, height = size or (10, 10)
    entry = {"file_name": path.name, "width": width, "height": height}
    problem = find_file_problem(str(tmp_path), entry, MAX_PIXELS)
    assert (problem is None) == (size is not None)
    assert problem in (None, Problem.UNREADABLE_FILE, Problem.TOO_MANY_PIXELS)

    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (24,), 48
    cfg.INPUT.MAX_PIXELS, cfg.INPUT.PIXEL_RANGE = MAX_PIXELS, pixel_range_text(pixel_range)
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [100.0] * num_channels
    mapper = InstanceMapper(cfg, is_train=True)
    record = {"file_name": str(path), "height": height, "width": width, "annotations": []}
    mapped = call(lambda: mapper(record), path)
    if mapped is not None:
        assert mapped["image"].shape[0] == num_channels and min(mapped["image"].shape) >= 1
    assert before == Image.MAX_IMAGE_PIXELS


def pixel_range_text(pixel_range: PixelRange) -> str:
    numbers = f"{pixel_range.low} {pixel_range.high}"
    return {"numbers": numbers, "percentiles": f"percentiles {numbers}"}.get(
        pixel_range.kind, pixel_range.kind
    )


def test_a_seed_is_one_picture() -> None:
    assert all(make_picture(seed)[1] == make_picture(seed)[1] for seed in range(20))
    assert len({make_picture(seed)[1] for seed in range(20)}) == 20
