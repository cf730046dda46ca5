"""INPUT.PIXEL_RANGE and INPUT.MAX_PIXELS on the command line, in files, and in a set's check."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instancezoo.config import get_cfg, load_cfg
from instancezoo.data.images import ImageReader
from instancezoo.data.pixel_range import PixelRange
from instancezoo.errors import ConfigError

PAIR = PixelRange("numbers", 0, 4095)


def read(cfg: Any) -> PixelRange:
    return ImageReader.from_config(cfg).pixel_range


@pytest.mark.parametrize("value", ["(0, 4095)", "[0,4095]", "0 4095", (0, 4095), [0, 4095.0]])
def test_a_pair_is_taken_in_every_spelling(value: Any, tmp_path: Path) -> None:
    cfg = load_cfg("", ["INPUT.PIXEL_RANGE", value])
    assert read(cfg) == PAIR
    cfg.merge_from_list(["INPUT.PIXEL_RANGE", "minmax"])
    assert read(cfg) == PixelRange("minmax")
    cfg.merge_from_list(["INPUT.PIXEL_RANGE", value])
    # As written beside a checkpoint, and read again.
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    assert read(load_cfg(str(tmp_path / "dump.yaml"))) == PAIR
    cfg = get_cfg()
    cfg.INPUT.PIXEL_RANGE = value
    assert read(cfg) == PAIR


@pytest.mark.parametrize("text", ["[0, 4095]", "(0, 4095)", "0 4095", "\n  - 0\n  - 4095"])
def test_a_pair_in_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"VERSION: 2\nINPUT:\n  PIXEL_RANGE: {text}\n")
    assert read(load_cfg(str(tmp_path / "a.yaml"))) == PAIR


@pytest.mark.parametrize("value", ["nonsense", "(0,)", "7", "(3, 2)"])
def test_other_values_name_the_key(value: str) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.PIXEL_RANGE"):
        load_cfg("", ["INPUT.PIXEL_RANGE", value])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["INPUT.MAX_PIXELS", -1], "INPUT.MAX_PIXELS"),
        (["MODEL.PIXEL_STD", [1.0]], "MODEL.PIXEL_STD"),
        (["INPUT.FORMAT", "BRG"], "INPUT.FORMAT"),
        (["INPUT.FORMAT", "HSV", "INPUT.PIXEL_RANGE", "minmax"], "INPUT.FORMAT"),
    ],
)
def test_bad_keys_are_named_before_anything_runs(overrides: list[Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_cfg("", overrides)


@pytest.mark.parametrize(("limit", "names"), [(1200, ["a.png"]), (0, ["a.png", "b.png"])])
def test_the_check_of_a_data_set_follows_the_limit(
    limit: int, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow's own would refuse the second
    images = []
    for number, (name, width) in enumerate([("a.png", 40), ("b.png", 50)], start=1):
        Image.fromarray(np.zeros((30, width), np.uint8)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "height": 30, "width": width})
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "limited" in catalog.list():
            catalog.remove("limited")
    load_cfg(
        "",
        ["DATASETS.TRAIN", ("limited",), "INPUT.MAX_PIXELS", limit],
        [f"limited={tmp_path}/truth.json:{tmp_path}"],
    )
    assert [Path(r["file_name"]).name for r in DatasetCatalog.get("limited")] == names
