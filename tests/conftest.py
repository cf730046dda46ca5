"""Fixtures that many tests share."""

from pathlib import Path

import pytest

import instancezoo.config  # noqa: F401  (registers everything once)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real COCO and nuclei images, kept beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real images are not in this checkout: no folder shared/data beside it")
    return folder
