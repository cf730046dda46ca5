"""Fixtures of the evaluation tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog
from synthetic_results import Dataset, make_dataset


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """80 images and 2,000 results."""
    return make_dataset()


@pytest.fixture
def small_dataset() -> Dataset:
    return make_dataset(num_images=10, num_results=60, seed=1)


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Register annotations under a name that goes away after the test."""
    names: list[str] = []

    def register_truth(truth: dict[str, Any], **metadata: Any) -> str:
        name = f"{tmp_path.name}_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(truth))
        categories = sorted(truth["categories"], key=lambda category: category["id"])
        defaults = {
            "json_file": str(path),
            "thing_classes": [category["name"] for category in categories],
            "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
        }
        MetadataCatalog.get(name).set(**{**defaults, **metadata})
        names.append(name)
        return name

    yield register_truth
    for name in names:
        MetadataCatalog.remove(name)
