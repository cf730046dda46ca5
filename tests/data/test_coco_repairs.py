"""Entries of a COCO JSON that are repaired rather than dropped, and counted."""

import math
from pathlib import Path
from typing import Any

import pytest
from coco_files import HEIGHT, SQUARE, WIDTH, check, make_coco

from instancezoo.data.coco_values import Problem

BAD_BOXES = [
    *("absent", None, [], "4 4 10 10", ["4", "4", "10", "wide"], [4, 4, 10], [[4, 4], [10, 10]]),
    *([4, [4], 10, 10], [4, math.nan, 10, 10], [4, 4, math.inf, 10], [4, 4, 0, 10]),
    *([4, 4, 10, -1], [0, 0, 0, 0], [WIDTH, 4, 10, 10], [4, -10, 10, 10], [1e300] * 4),
]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_good_mask_replaces_a_bad_box(box: Any, coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][1]["bbox"] = box
    if box == "absent":
        del coco["annotations"][1]["bbox"]

    clean, report = check(coco, coco_folder)

    assert not report.dropped
    assert report.repaired == {Problem.BOX_MEASURED: [11]}
    assert clean["annotations"][1]["bbox"] == [3, 5, 6, 10]


def test_null_iscrowd_is_no_crowd(coco_folder: Path) -> None:
    coco = make_coco()
    coco["annotations"][1]["iscrowd"] = None
    clean, report = check(coco, coco_folder)
    assert not report.dropped and list(report.repaired) == [Problem.NORMALISED]
    assert clean["annotations"][1]["iscrowd"] == 0


@pytest.mark.parametrize("bad_id", [10, 0, -3, None, "a", 2.5, True, "absent"])
def test_annotations_without_an_id_of_their_own_are_numbered(
    coco_folder: Path, bad_id: Any
) -> None:
    coco = make_coco()
    for annotation in coco["annotations"][1:]:
        annotation["id"] = bad_id
        if bad_id == "absent":
            del annotation["id"]

    clean, report = check(coco, coco_folder)

    count = len(coco["annotations"])
    assert not report.dropped
    assert [a["id"] for a in clean["annotations"]] == [10, *range(11, 10 + count)]
    boxes = [a["bbox"] for a in coco["annotations"]]
    assert [a["bbox"] for a in clean["annotations"]] == boxes
    (labels,) = (v for k, v in report.repaired.items() if "renumbered" in k)
    assert len(labels) == count - 1


def test_only_an_entry_equal_in_every_key_is_dropped(coco_folder: Path) -> None:
    coco = make_coco()
    first = coco["annotations"][0]
    coco["annotations"] += [dict(first), {**first, "iscrowd": 1}, {**first, "iscrowd": 1}]
    num_crowds = sum(a.get("iscrowd", 0) for a in coco["annotations"][:-1])

    clean, report = check(coco, coco_folder)

    assert sum(map(len, report.dropped.values())) == 2
    assert report.num_annotations == len(clean["annotations"]) == len(coco["annotations"]) - 2
    assert report.num_crowds == num_crowds
    assert (
        f"{num_crowds} of {report.num_annotations} annotations have iscrowd 1" in report.summary()
    )
    ids = [a["id"] for a in clean["annotations"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("change", "repair", "expected"),
    [
        ({"bbox": [-5, 4, 20, 30]}, "box clipped to the image", {"bbox": [0, 4, 15, 20]}),
        ({"area": None}, Problem.AREA_MEASURED, {"area": 60}),
        ({"area": 0}, Problem.AREA_MEASURED, {"area": 60}),
        ({"area": "60"}, Problem.AREA_MEASURED, {"area": 60}),
        ({"area": HEIGHT * WIDTH + 1}, Problem.AREA_MEASURED, {"area": 60}),
        (
            {"segmentation": [[1, 1, 2, 2], SQUARE]},
            "polygon under 3 points left out",
            {"segmentation": [SQUARE]},
        ),
        (
            {"iscrowd": None, "category_id": 7.0},
            Problem.NORMALISED,
            {"iscrowd": 0, "category_id": 7},
        ),
        (
            {"attributes": "small"},
            Problem.ATTRIBUTES_LEFT_OUT,
            {"category_id": 7},
        ),
        (
            {"attributes": {"\ud800": True}},
            Problem.ATTRIBUTES_LEFT_OUT,
            {"category_id": 7},
        ),
        ({"id": 0}, Problem.RENUMBERED, {"id": 23}),
    ],
)
def test_small_faults_are_repaired(
    change: dict[str, Any], repair: str, expected: dict[str, Any], coco_folder: Path
) -> None:
    coco = make_coco()
    coco["annotations"][1] |= change
    if change.get("iscrowd", 0) is None:
        del coco["annotations"][1]["iscrowd"]

    clean, report = check(coco, coco_folder)

    assert report.num_dropped == 0
    assert report.repaired == {repair: [change.get("id", 11)]}
    entry = clean["annotations"][1]
    assert {key: entry[key] for key in expected} == expected
