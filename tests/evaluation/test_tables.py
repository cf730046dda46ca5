"""Tables per class, size and attribute on a hand-made image with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from synthetic_results import encode

from instancezoo.evaluation import GroundTruth, evaluate_results
from instancezoo.evaluation.results import ResultsFile
from instancezoo.evaluation.tables import (
    format_table,
    tabulate_attributes,
    tabulate_classes,
    tabulate_sizes,
)

SIDE = 200
# x, y, width, height
HOLED, PLAIN, BACKGROUND = (10, 10, 40, 40), (100, 100, 40, 40), (150, 20, 30, 30)


def make_shape(box: tuple[int, int, int, int], category_id: int, **rest: Any) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return {
        "image_id": 1, "category_id": category_id, "bbox": [float(v) for v in box],
        "segmentation": encode(mask), **rest,
    }  # fmt: skip


def make_object(box: tuple[int, int, int, int], category_id: int = 1, **rest: Any) -> Any:
    return make_shape(box, category_id, **{"iscrowd": 0, "area": box[2] * box[3], **rest})


def make_truth(*objects: dict[str, Any]) -> GroundTruth:
    return GroundTruth.read(
        {
            "images": [{"id": 1, "height": SIDE, "width": SIDE}],
            "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}],
            "annotations": [{**item, "id": i} for i, item in enumerate(objects)],
        }
    )


def make_results(*results: dict[str, Any]) -> ResultsFile:
    file = ResultsFile()
    file.append(1, list(results))
    return file


@pytest.fixture
def truth() -> GroundTruth:
    """An object with a hole, and one that is occluded instead."""
    return make_truth(
        make_object(HOLED, attributes={"holes": True, "occluded": False}),
        make_object(PLAIN, attributes={"holes": False, "occluded": True}),
    )


both = pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
boxes_and_masks = pytest.mark.parametrize("iou_type", ["bbox", "segm"])


@both
@boxes_and_masks
class TestAttributes:
    def attribute_ap(
        self, truth: GroundTruth, results: ResultsFile, iou_type: str, backend: str
    ) -> dict[str, float]:
        rows = tabulate_attributes(truth, results, iou_type, backend)
        return {row["attribute"]: row["AP"] for row in rows}

    def test_other_objects_do_not_count(
        self, truth: GroundTruth, iou_type: str, backend: str
    ) -> None:
        found = make_results(make_shape(PLAIN, 1, score=0.9), make_shape(HOLED, 1, score=0.6))
        rows = tabulate_attributes(truth, found, iou_type, backend)
        assert [(row["attribute"], row["objects"]) for row in rows] == [
            ("holes", 1),
            ("occluded", 1),
        ]
        assert [row["AP"] for row in rows] == [pytest.approx(100), pytest.approx(100)]
        only_plain = make_results(make_shape(PLAIN, 1, score=0.9))
        assert self.attribute_ap(truth, only_plain, iou_type, backend) == {
            "holes": 0,
            "occluded": pytest.approx(100),
        }

    def test_poor_or_repeated_detection_is_charged_to_its_own_object(
        self, truth: GroundTruth, iou_type: str, backend: str
    ) -> None:
        x, y, w, h = PLAIN
        results = make_results(
            make_shape((x + 8, y, w, h), 1, score=0.95),  # IoU 2/3 with the plain object
            make_shape((x - 8, y, w, h), 1, score=0.90),
            make_shape((x + 20, y, w, h), 1, score=0.85),  # IoU 1/3: right at no threshold
            make_shape(PLAIN, 2, score=0.80),  # wrong class
            make_shape(HOLED, 1, score=0.50),
        )
        ap = self.attribute_ap(truth, results, iou_type, backend)
        assert ap["holes"] == pytest.approx(100)
        assert ap["occluded"] < 50

    def test_background_is_charged_to_every_attribute(
        self, truth: GroundTruth, iou_type: str, backend: str
    ) -> None:
        results = make_results(
            make_shape(BACKGROUND, 1, score=0.95),
            make_shape(PLAIN, 1, score=0.9),
            make_shape(HOLED, 1, score=0.6),
        )
        # one false, one right: precision 1/2 at every recall
        ap = self.attribute_ap(truth, results, iou_type, backend)
        assert ap == {"holes": pytest.approx(50), "occluded": pytest.approx(50)}

    def test_detection_that_matches_an_object_counts_whatever_it_overlaps_more(
        self, iou_type: str, backend: str
    ) -> None:
        truth = make_truth(
            make_object((10, 10, 40, 40), attributes={"holes": True}),
            make_object((16, 10, 40, 40), 2, attributes={"holes": False}),
        )
        nearer_to_other = make_results(make_shape((15, 10, 40, 40), 1, score=0.9))
        row = tabulate_attributes(truth, nearer_to_other, iou_type, backend)[0]
        assert row["AP50"] == pytest.approx(100)

    def test_crowds_stay_crowds(self, iou_type: str, backend: str) -> None:
        truth = make_truth(
            make_object(HOLED, attributes={"holes": True}),
            make_object(PLAIN, iscrowd=1, attributes={"holes": True}),
        )
        x, y, _, _ = PLAIN
        results = make_results(
            make_shape((x, y, 10, 10), 1, score=0.9),  # inside the crowd
            make_shape((x + 20, y, 10, 10), 1, score=0.8),
            make_shape(HOLED, 1, score=0.5),
        )
        (row,) = tabulate_attributes(truth, results, iou_type, backend)
        assert row["objects"] == 1 and row["AP"] == pytest.approx(100)

    def test_detection_beside_a_crowd_is_on_background(self, iou_type: str, backend: str) -> None:
        truth = make_truth(
            make_object(HOLED, attributes={"holes": True}), make_object(PLAIN, iscrowd=1)
        )
        x, y, w, h = PLAIN
        half_outside = make_shape((x + 24, y, w, h), 1, score=0.9)  # 40% inside the crowd
        results = make_results(half_outside, make_shape(HOLED, 1, score=0.5))
        (row,) = tabulate_attributes(truth, results, iou_type, backend)
        assert row["AP"] == pytest.approx(50)

    def test_nothing_found_and_nothing_to_find(
        self, truth: GroundTruth, iou_type: str, backend: str
    ) -> None:
        ap = self.attribute_ap(truth, make_results(), iou_type, backend)
        assert ap == {"holes": 0, "occluded": 0}
        absent = make_truth(make_object(HOLED, attributes={"holes": False}))
        (row,) = tabulate_attributes(absent, make_results(), iou_type, backend)
        assert row["objects"] == 0 and math.isnan(row["AP"])
        assert tabulate_attributes(make_truth(), make_results(), iou_type, backend) == []


def test_classes_and_sizes() -> None:
    truth = make_truth(make_object(HOLED), make_object(PLAIN, 2), make_object((0, 60, 20, 20)))
    results = [make_shape(HOLED, 1, score=0.9)]
    evaluation = evaluate_results(truth, results, "segm")
    disc, ring = tabulate_classes(evaluation, truth)
    assert (disc["class"], disc["objects"], disc["AR"]) == ("disc", 2, pytest.approx(50))
    assert disc["AP50"] == pytest.approx(100 * 51 / 101)  # 101 recall points, 0 to 0.50 reached
    assert (ring["class"], ring["objects"], ring["AP"]) == ("ring", 1, 0)
    sizes = {row["size"]: row for row in tabulate_sizes(evaluation, truth)}
    assert {size: row["objects"] for size, row in sizes.items()} == {
        "all": 3, "small": 1, "medium": 2, "large": 0,
    }  # fmt: skip
    assert sizes["small"]["AP"] == 0 and sizes["medium"]["AP"] == pytest.approx(50)
    assert math.isnan(sizes["large"]["AP"])


def test_text_is_aligned() -> None:
    rows = [
        {"class": "disc", "objects": 12, "AP": 61.234},
        {"class": "crescent", "objects": 0, "AP": float("nan")},
    ]
    lines = format_table(rows).splitlines()
    assert [line.split() for line in lines if "-----" not in line] == [
        ["class", "objects", "AP"], ["disc", "12", "61.2"], ["crescent", "0", "-"],
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
