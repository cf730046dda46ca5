"""Fixtures of the data tests."""

from pathlib import Path

import pytest
from coco_files import HEIGHT, WIDTH
from PIL import Image


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for name in ("1.png", "2.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder
