"""Fixtures that many tests share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import instancezoo.config  # noqa: F401  (registers everything once)
from instancezoo.layers import extension
from instancezoo.method import Method
from instancezoo.methods import METHODS

REPOSITORY = Path(__file__).resolve().parent.parent


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


@pytest.fixture(params=["compiled", "plain"])
def op_version(request, monkeypatch) -> str:
    """Runs a test with the compiled operators, then with the plain versions beside them."""
    if request.param == "plain":
        monkeypatch.setattr(extension, "IS_BUILT", False)
    elif not extension.IS_BUILT:
        pytest.skip("instancezoo._C was not built: install the package where there is a compiler")
    return request.param
