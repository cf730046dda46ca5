"""Fixtures that many tests share, and what a run in several processes needs."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a process, set before torch starts its own
    os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import instancezoo.config  # noqa: F401  (registers everything once)
from instancezoo.layers import extension
from instancezoo.method import Method
from instancezoo.methods import METHODS

REPOSITORY = Path(__file__).resolve().parent.parent
# Tests of half a minute: at the end of a run they would leave the other processes idle.
LONG = ("test_train_net.py", "test_notebooks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first; the others keep their order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real COCO and nuclei images, kept beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real images are not in this checkout: no folder shared/data beside it")
    return folder


@pytest.fixture
def add_method() -> Iterator[Callable[[Method], None]]:
    """Adds a record to `METHODS` for the time of a test."""
    before = list(METHODS)
    yield METHODS.append
    METHODS[:] = before


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory) -> str:
    """Name of a registered data set of 6 images of 128 px with four classes."""
    from instancezoo.data.datasets import register_dataset
    from instancezoo.data.shapes import (
        ANNOTATION_FILE,
        IMAGE_FOLDER,
        SHAPES_SETS,
        generate_shapes,
    )

    folder = tmp_path_factory.mktemp("few_shapes")
    generate_shapes(replace(SHAPES_SETS["shapes_tiny_train"], num_images=6, seed=99), folder)
    register_dataset("few_shapes", str(folder / ANNOTATION_FILE), str(folder / IMAGE_FOLDER))
    return "few_shapes"


@pytest.fixture(scope="session")
def narrow_model() -> list[object]:
    """Overrides by which Mask R-CNN's tiny model has a hundredth of its weights."""
    return [
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
        *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RPN.CONV_DIMS", [16]),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    ]


@pytest.fixture(params=["compiled", "plain"])
def op_version(request, monkeypatch) -> str:
    """Runs a test with the compiled operators, then with the plain versions beside them."""
    if request.param == "plain":
        monkeypatch.setattr(extension, "IS_BUILT", False)
    elif not extension.IS_BUILT:
        pytest.skip("instancezoo._C was not built: install the package where there is a compiler")
    return request.param
