"""The doctor looks at the pixels of a sample and names the key and a value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog

from instancezoo.config import get_cfg
from instancezoo.data.datasets import register_dataset
from instancezoo.doctor.checks_pixels import check_pixels, suggest_range
from instancezoo.doctor.context import Context, InputSize
from instancezoo.doctor.diagnose import read_dataset
from instancezoo.doctor.findings import Finding, Severity

HEIGHT, WIDTH = 40, 60
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH))


@pytest.fixture
def diagnose(tmp_path: Path):
    def run(*pictures: np.ndarray, **keys: Any) -> list[Finding]:
        images = []
        for number, pixels in enumerate(pictures, start=1):
            name = f"{number}.tif"
            tifffile.imwrite(tmp_path / name, pixels, photometric="minisblack")
            size = {"height": HEIGHT, "width": WIDTH}
            images.append({"id": number, "file_name": name, **size})
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "truth.json").write_text(json.dumps(content))
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "doctor_pixels" in catalog.list():
                catalog.remove("doctor_pixels")
        register_dataset("doctor_pixels", str(tmp_path / "truth.json"), str(tmp_path))
        cfg = get_cfg()
        for key, value in keys.items():
            cfg["MODEL" if key in cfg.MODEL else "INPUT"][key] = value
        return list(check_pixels(Context(cfg, [read_dataset("doctor_pixels", True)])))

    return run


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pictures_that_use_the_range_are_fine(dtype: str, diagnose) -> None:
    scale = {"uint8": 1, "uint16": 257}.get(dtype, 1 / 255)
    (finding,) = diagnose((NOISE * scale).astype(dtype))
    assert finding.severity is Severity.OK and dtype in finding.message


def test_12_bits_in_16_name_their_range(diagnose) -> None:
    (finding,) = diagnose((NOISE * 16 + 15).astype(np.uint16))
    assert finding.severity is Severity.WARNING
    assert "up to 16 levels of the 256 in a file" in finding.message
    assert 'INPUT.PIXEL_RANGE "(0, 4095)"' in finding.remedy and "minmax" in finding.remedy
    (finding,) = diagnose((NOISE * 16 + 15).astype(np.uint16), PIXEL_RANGE=(0, 4095))
    assert finding.severity is Severity.OK


def test_8_bits_in_16_name_theirs(diagnose) -> None:
    (finding,) = diagnose(NOISE.astype(np.uint16))
    assert finding.severity is Severity.WARNING and '"(0, 255)"' in finding.remedy


def test_dark_8_bit_pictures_are_told(diagnose) -> None:
    (finding,) = diagnose((NOISE // 32).astype(np.uint8), (NOISE // 64).astype(np.uint8))
    assert finding.severity is Severity.WARNING
    assert "3 % of the range" in finding.message and '"(0, 7)"' in finding.remedy


def test_few_colours_are_no_fault(diagnose) -> None:
    (finding,) = diagnose((NOISE > 100).astype(np.uint8) * 200)
    assert finding.severity is Severity.OK
    (finding,) = diagnose(np.zeros((HEIGHT, WIDTH), np.uint8))  # an empty picture
    assert finding.severity is Severity.OK


def test_pages_and_floats_are_named(diagnose) -> None:
    pages = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    failure, rest = diagnose(
        NOISE.astype(np.uint8), np.concatenate([pages, pages]), (NOISE * 9.5).astype(np.float32)
    )
    assert failure.severity is Severity.WARNING and rest.severity is Severity.OK
    assert "2 of 3 images" in failure.message
    assert "2.tif" in failure.message and "6 pages" in failure.message
    assert "3.tif" in failure.message and "INPUT.PIXEL_RANGE" in failure.message
    (failure,) = diagnose(np.concatenate([pages, pages]))
    assert failure.severity is Severity.ERROR


def test_pages_may_be_the_channels(diagnose) -> None:
    numbers = [100.0] * 6
    pages = np.stack([NOISE.astype(np.uint8)] * 6)
    (finding,) = diagnose(pages, PIXEL_MEAN=numbers, PIXEL_STD=numbers)
    assert finding.severity is Severity.OK


def test_a_bad_key_is_a_finding(diagnose) -> None:
    (finding,) = diagnose(NOISE.astype(np.uint8), PIXEL_RANGE="nonsense")
    assert finding.severity is Severity.ERROR and "INPUT.PIXEL_RANGE" in finding.message


@pytest.mark.parametrize(
    ("low", "high", "pair"),
    [
        (0, 4000, "(0, 4095)"),
        (100, 4096, "(0, 8191)"),
        (-1024, 3071, "(-1024, 3071)"),
        (0, 0.25, "(0, 1)"),
        (0, 0.01, "(0, 0.01)"),
        (0.5, 3000.5, "(0.5, 3000.5)"),
    ],
)
def test_the_pair_holds_the_values(low: float, high: float, pair: str) -> None:
    assert suggest_range(low, high) == pair


def test_sizes_of_thin_images_are_at_least_a_pixel() -> None:
    sizes = np.array([[3000, 4], [4, 3000], [1, 1]])
    assert InputSize(48, 64).resize(sizes).tolist() == [[64, 1], [1, 64], [48, 48]]
