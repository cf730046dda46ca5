"""200 mutated COCO JSONs end in a counted drop or in words, and what is left can be used."""

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from coco_files import AREA, HEIGHT, WIDTH, check, make_coco, make_rle
from detectron2.data.detection_utils import annotations_to_instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from instancezoo.data.coco_dataset import DatasetError, make_records
from instancezoo.data.coco_masks import decode_runs
from instancezoo.data.coco_values import BadEntry


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90), st.floats(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_runs_are_those_of_the_mask(seed: int, height: int, width: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density

    runs = decode_runs(mask_util.encode(np.asfortranarray(mask, np.uint8))["counts"].decode())

    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values, mask.reshape(-1, order="F"))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_string_gives_runs_or_is_refused(counts: str) -> None:
    try:
        runs = decode_runs(counts)
    except BadEntry:
        return
    assert len(runs) > 0


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 0.5, -1.0, 1e15, 1e308, math.nan, math.inf]),
    st.sampled_from(["", "1", "abc", "o0o0", "0" * 50, "\ud800", "\0", "1.png"]),
    st.sampled_from([[], {}, [[]], [None], [[1, 2]], [[1, 2, 3, 4]], {"size": [24, 32]}]),
    st.lists(st.floats(-100, 100), max_size=10),
    st.lists(st.integers(-5, AREA), max_size=6).map(
        lambda counts: make_rle(counts)["segmentation"]
    ),
    st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12).map(
        lambda counts: make_rle(counts)["segmentation"]
    ),
)


def _list_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, child in children:
        places.append((*path, key))
        if isinstance(child, dict | list):
            places += _list_places(child, (*path, key))
    return places


@st.composite
def mutated_cocos(draw: st.DrawFn) -> dict[str, Any]:
    coco = make_coco()
    for _ in range(draw(st.integers(1, 4))):
        places = _list_places(coco)
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        owner: Any = coco
        for parent in parents:
            owner = owner[parent]
        action = draw(st.sampled_from(["replace", "replace", "delete", "nest", "repeat"]))
        if action == "replace":
            owner[key] = copy.deepcopy(draw(ODD_VALUES))
        elif action == "delete":
            del owner[key]
        elif action == "nest":
            owner[key] = draw(st.sampled_from([[owner[key]], {"x": owner[key]}]))
        elif isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
    return coco


@given(mutated_cocos())
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_mutated_files_end_in_a_drop_or_in_words(coco_folder: Path, coco: dict[str, Any]) -> None:
    try:
        clean, report = check(coco, coco_folder)
    except DatasetError as error:
        assert str(coco_folder) in str(error)
        return
    assert report.num_annotations == len(clean["annotations"])
    assert report.summary()
    (coco_folder / "clean.json").write_text(json.dumps(clean, allow_nan=False))
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(coco_folder / "clean.json"))
    for annotation in api.loadAnns(api.getAnnIds()):
        if "segmentation" in annotation:
            assert api.annToMask(annotation).any()
    for record in make_records(clean, coco_folder):
        objects = [a for a in record["annotations"] if "segmentation" in a]
        instances = annotations_to_instances(objects, (HEIGHT, WIDTH), mask_format="bitmask")
        if objects:
            assert instances.gt_masks.tensor.flatten(1).any(dim=1).all()
