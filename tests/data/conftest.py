"""Fixtures of the data tests."""

from pathlib import Path

import pytest
from coco_files import write_images


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("coco"))
